package dev.epiphyte

import com.sun.net.httpserver.HttpServer
import java.io.ByteArrayOutputStream
import java.io.File
import java.net.InetAddress
import java.net.InetSocketAddress
import java.util.Base64
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.launch

/** Four seconds before the message was made. */
private const val NOW = 1_795_918_710_000L

/** A SuperLink that gives the answers of flwr's own, in the order in which they are asked for. */
internal class RecordedLink : FlowerTransport {
    private val answers = repository("tests/golden/flower_round.txt").readLines()
        .map { it.split(" ") }.groupBy({ it[0] }, { Base64.getDecoder().decode(it[1]) }).mapValues { ArrayDeque(it.value) }
    private val alive = byteArrayOf(0x08, 1)
    val calls = mutableListOf<String>()

    override suspend fun post(request: FlowerRequest): FlowerAnswer {
        val call = request.path.removePrefix("/v1/fleet/")
        calls += call
        val body = when (call) {
            "push-messages" -> wantsAll(request.body)
            "push-object" -> answers.getValue(call).first()
            "send-node-heartbeat" -> alive
            else -> answers[call]?.removeFirstOrNull() ?: ByteArray(0)
        }
        return FlowerAnswer(200, null, body)
    }

    /** The answer that asks for every object that is named. */
    private fun wantsAll(body: ByteArray) = ByteArrayOutputStream().apply {
        for (name in Regex("[0-9a-f]{64}").findAll(String(body, Charsets.ISO_8859_1))) {
            write(byteArrayOf(0x1a, 64) + name.value.toByteArray())
        }
        write(byteArrayOf(0x22, 1, 0x73))
    }.toByteArray()
}

/** A node of Flower: a whole round, killed or not, and what keeps one from going on. */
class FlowerTest {
    private val key = SigningKey.generate(KeyKind.P256)

    private suspend fun open(saved: ByteArray? = null, signer: Signer = key) = FlowerClient.open(signer, saved) { NOW }

    /** What every test's app does. */
    private abstract class App : FlowerApp {
        var saved: ByteArray? = null
        val ends = mutableListOf<FlowerEnd>()

        override suspend fun save(state: ByteArray) {
            saved = state
        }

        override suspend fun over(end: FlowerEnd) {
            ends += end
        }
    }

    @Test
    fun `a whole round is taken part in`() = running {
        withFolder { folder ->
            val (link, client) = RecordedLink() to open()
            var delta: Delta? = null
            val app = object : App() {
                override suspend fun work(task: FlowerTask): FlowerReply {
                    assertEquals(listOf("train", "77", "1"), listOf(task.kind, task.run, task.round.toString()))
                    assertEquals(mapOf<String, FlowerValue>("server-round" to FlowerValue.Whole(1)), task.config)
                    val version = File(folder, "came.version").apply { writeBytes(task.payload!!) }
                    val start = File(folder, "version")
                    val applied = tiny().applyVersion(version, start, accept)
                    val options = lesson(File(folder, "run"), steps = 2)
                        .copy(init = start.path, freeze = applied.freeze, rank = null)
                    val trainer = tiny().trainer(options).apply { run() }
                    val made = trainer.delta(version, key)
                    delta = made
                    val metrics = mapOf("num-examples" to FlowerMetric.Count(5), "norm" to FlowerMetric.Real(made.norm))
                    return FlowerReply.Done(made.bytes, metrics)
                }

                override suspend fun over(end: FlowerEnd) {
                    super.over(end)
                    delta!!.uploaded()
                    client.leave(FlowerLeave.OFFLINE)
                }
            }
            client.use { it.run(app, link) }
            assertEquals(listOf<FlowerEnd>(FlowerEnd.Delivered), app.ends)
            assertEquals(listOf("register-node", "activate-node", "pull-messages"), link.calls.take(3))
            assertEquals(6 to 6, link.calls.count { it == "pull-object" } - 1 to link.calls.count { it == "push-object" })
            assertEquals("deactivate-node", link.calls.last())
            assertNotNull(app.saved)
        }
    }

    @Test
    fun `a node that is killed at work is given the same task again`() = running {
        val link = RecordedLink()
        val begun = CompletableDeferred<FlowerTask>()
        val killed = object : App() {
            override suspend fun work(task: FlowerTask): FlowerReply {
                begun.complete(task)
                awaitCancellation()
            }
        }
        open().use { client ->
            val running = launch { client.run(killed, link) }
            begun.await()
            running.cancel()
            running.join()
        }
        open(killed.saved).use { client ->
            val again = object : App() {
                override suspend fun work(task: FlowerTask): FlowerReply {
                    assertContentEquals(begun.await().payload, task.payload)
                    return FlowerReply.Refused("not today")
                }

                override suspend fun over(end: FlowerEnd) {
                    super.over(end)
                    client.leave(FlowerLeave.ONLINE)
                }
            }
            client.run(again, link)
            assertEquals(listOf<FlowerEnd>(FlowerEnd.Refused("not today")), again.ends)
            val status = client.status()
            assertEquals("18364758544493064720" to null, status.nodeId to status.trouble)
            assertTrue(status.requests > 0 && status.sentBytes > 0)
        }
    }

    @Test
    fun `leaving ends the work, and what an app throws the run`() = running {
        val begun = CompletableDeferred<Unit>()
        val idle = object : App() {
            override suspend fun work(task: FlowerTask): FlowerReply {
                begun.complete(Unit)
                awaitCancellation()
            }
        }
        open().use { client ->
            val running = launch { client.run(idle, RecordedLink()) }
            begun.await()
            client.leave(FlowerLeave.ONLINE)
            running.join()
            assertTrue(idle.ends.isEmpty() && !running.isCancelled)
        }
        val failing = object : App() {
            override suspend fun work(task: FlowerTask): FlowerReply = error("mine")
        }
        open().use { assertEquals("mine", assertFailsWith<IllegalStateException> { it.run(failing, RecordedLink()) }.message) }
    }

    @Test
    fun `what a signer throws is the cause, and a key that is not on P-256 is refused`() = running {
        val locked = object : Signer by key {
            override fun sign(message: ByteArray): ByteArray = error("the store is locked")
        }
        open(signer = locked).use { client ->
            val callback = assertThrown<EpiphyteException.Callback> { client.poll() }
            assertEquals("the store is locked", assertIs<IllegalStateException>(callback.cause).message)
        }
        val ed25519 = SigningKey.generate(KeyKind.ED25519)
        assertEquals("key", assertThrown<EpiphyteException.InvalidArgument> { open(signer = ed25519) }.name)
    }

    @Test
    fun `no answer is borne, and no Fleet API is an error`() = running {
        open().use { client ->
            assertIs<FlowerStep.Send>(client.poll())
            client.answer(null)
            assertTrue(assertIs<FlowerStep.Wait>(client.poll()).millis > 0)
            assertTrue("no answer" in client.status().trouble!!)
        }
        open().use { client ->
            val elsewhere = FlowerTransport { FlowerAnswer(404, null, ByteArray(0)) }
            val idle = object : App() {
                override suspend fun work(task: FlowerTask): FlowerReply = awaitCancellation()
            }
            assertEquals("register-node", assertThrown<EpiphyteException.SuperLink> { client.run(idle, elsewhere) }.call)
        }
    }

    @Test
    fun `the system's HTTP carries a request`() = running {
        val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/v1/fleet/pull-messages") { exchange ->
            val asked = exchange.requestBody.readBytes() + exchange.requestHeaders.getFirst("flwr-timestamp").toByteArray()
            exchange.sendResponseHeaders(if (exchange.requestMethod == "POST") 412 else 405, asked.size.toLong())
            exchange.responseBody.use { it.write(asked) }
        }
        server.start()
        val transport = FlowerHttp("http://127.0.0.1:${server.address.port}/", timeoutMillis = 5000)
        val request = FlowerRequest("/v1/fleet/pull-messages", mapOf("flwr-timestamp" to "now"), byteArrayOf(65))
        val answer = assertNotNull(transport.post(request))
        assertEquals(412 to "Anow", answer.status to String(answer.body))
        assertNotNull(answer.date)
        server.stop(0)
        assertNull(transport.post(request))
    }
}
