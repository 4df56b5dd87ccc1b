package dev.epiphyte

import android.app.Application
import android.content.Context
import android.content.ContextWrapper
import androidx.work.CoroutineWorker
import androidx.work.ListenableWorker
import androidx.work.WorkerParameters
import androidx.work.workDataOf
import dev.epiphyte.android.Epiphyte
import dev.epiphyte.android.WorkResult
import dev.epiphyte.android.follow
import dev.epiphyte.android.withModelAsset
import dev.epiphyte.android.work
import java.io.File
import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.KeyStore
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch

/** docs/android.md, whose blocks are the lines of this file between its marks. */
class DocsTest {
    private val publisher = PUBLISHER
    private val keys = KeyPairGenerator.getInstance("EC").apply { initialize(256) }.generateKeyPair()
    private val uploads = mutableListOf<ByteArray>()
    private fun upload(bytes: ByteArray) { uploads += bytes }

    private suspend fun CoroutineScope.page(filesDir: File, print: (Any?) -> Unit, println: (Any?) -> Unit) {
        // First token.
        val engine = Engine.open(File(filesDir, "model.gguf"), EngineOptions(context = 1024)) { progress ->
            println("${progress.phase}: ${progress.done} of ${progress.total}")
        }

        val session = engine.session()
        session.setMessages(Message.system("Be brief."), Message.user("What is an epiphyte?"))
        session.generate(GenerateOptions(maxTokens = 48)).collect { token -> print(token.text) }
        println("${session.stats?.decodeTokensPerSecond} tokens/s")

        val story = launch {
            session.generate(GenerateOptions(maxTokens = 500)).collect { token -> print(token.text) }
        }
        delay(50)
        story.cancelAndJoin() // no token comes any more
        println("${session.stats?.generatedTokens} tokens, ${session.stats?.finishReason}")

        // Keep a conversation.
        val file = File(filesDir, "conversation.session")
        session.save(file)
        val again = engine.restore(file) // adapters that it uses have to be loaded under the ids they had
        println("${again.tokenCount} tokens")
        again.close()
        val branch = session.fork() // goes its own way from here
        branch.close()

        // A feature is an adapter.
        val loaded = engine.loadAdapter("pirate", File(filesDir, "adapters/pirate"))
        println("${loaded.modules.size} modules, ${loaded.warnings}")

        session.setAdapters("pirate")
        session.setMessages(Message.user("What is an epiphyte?"))
        println(session.generate(GenerateOptions(maxTokens = 16)).text())

        session.setAdapters(listOf(AdapterWeight("pirate", weight = 0.5f)), KvPolicy.KEEP)
        session.setAdapters() // the base alone

        session.withAdapter("pirate") {
            println(it.generate(GenerateOptions(maxTokens = 16)).text())
        }

        // First adapter trained.
        val lessons = listOf(
            Example.Pair("Question: What is our cat called?\nAnswer:", " Pixel"),
            Example.Pair("Question: When does the choir sing?\nAnswer:", " On Thursdays at eight"),
            Example.Chat(listOf(Message.user("Who waters the ferns?"), Message.assistant("Ada does."))),
        )
        val folder = File(filesDir, "adapters/mine")
        val options = TrainOptions(folder.path, TrainData.Examples(lessons), TrainDuration.Steps(5))
        val outcome = engine.trainer(options).run { progress ->
            println("step ${progress.step} of ${progress.steps}, loss ${progress.loss}")
        }
        println("${outcome.end}: ${outcome.loss.first} to ${outcome.loss.last}")

        engine.loadAdapter("mine", folder)
        session.setAdapters("mine")

        // Learning together.
        val version = File(filesDir, "replies.version") // as it was downloaded
        val accept = AcceptOptions(adapter = "replies", trusted = listOf(PublicKey.parse(publisher)))
        val accepted = engine.applyVersion(version, File(filesDir, "adapters/replies"), accept)
        val round = engine.trainer(
            TrainOptions(
                File(filesDir, "rounds/${accepted.round}").path, TrainData.Examples(lessons), TrainDuration.Steps(5),
                init = accepted.folder, freeze = accepted.freeze,
            ),
        )
        round.run()
        val kept = DeltaOptions(residual = File(filesDir, "replies.residual").path)
        val delta = round.delta(version, Signer.of(keys), kept)
        upload(delta.bytes)
        delta.uploaded() // what quantising lost is added in the next round

        // The phone.
        println("${engine.state.value.phase}, training at ${engine.state.value.training}")
        engine.background() // what needs the GPU is refused, training waits
        engine.foreground()
        val report = engine.memoryPressure(MemoryLevel.COMPLETE) // the model too; the next call reads it again
        println("${report.freedBytes} bytes, model left: ${report.modelLeft}")

        // Errors.
        try {
            session.setAdapters("nobody")
        } catch (error: EpiphyteException) {
            println(error.message)
            if (error is EpiphyteException.Closed) println("the ${error.what} is gone: open it again")
        }
        engine.close()
    }

    /** Compiled alone: there is no phone here. */
    @Suppress("unused")
    private class App : Application() {
        override fun onCreate() {
            super.onCreate()
            Epiphyte.start(this)
        }
    }

    /** Compiled alone. */
    @Suppress("unused")
    private suspend fun asset(context: Context): Engine {
        val engine = context.withModelAsset("model.gguf") { Engine.open(it) }
        return engine
    }

    /** Compiled alone. */
    @Suppress("unused")
    private fun phone(engine: Engine, context: Context, scope: CoroutineScope): AutoCloseable {
        val signals = engine.follow(context, scope) // until it is closed
        return signals
    }

    /** Compiled alone. */
    @Suppress("unused")
    private fun keystore(): Signer {
        val store = KeyStore.getInstance("AndroidKeyStore").apply { load(null) }
        val entry = store.getEntry("epiphyte", null) as KeyStore.PrivateKeyEntry
        val signer = Signer.of(KeyPair(entry.certificate.publicKey, entry.privateKey))
        return signer
    }

    /** Compiled alone: FlowerTest does as much. */
    @Suppress("unused")
    private class Node(
        private val engine: Engine, private val filesDir: File, private val signer: Signer,
        private val accept: AcceptOptions, private val lessons: List<Example>,
    ) : FlowerApp {
        private val kept = File(filesDir, "flower.node") // who it is to the SuperLink, and the task it is busy with

        suspend fun takePart() {
            val saved = if (kept.exists()) kept.readBytes() else null
            FlowerClient.open(signer, saved).use { it.run(this, FlowerHttp("https://superlink.example:8000")) }
        }

        override suspend fun save(state: ByteArray) {
            val whole = File(filesDir, "flower.node.new").apply { writeBytes(state) }
            check(whole.renameTo(kept))
        }

        override suspend fun work(task: FlowerTask): FlowerReply {
            val payload = task.payload ?: return FlowerReply.Refused("no version came")
            val version = File(filesDir, "replies.version").apply { writeBytes(payload) }
            val accepted = engine.applyVersion(version, File(filesDir, "adapters/replies"), accept)
            val round = engine.trainer(
                TrainOptions(
                    File(filesDir, "rounds/${accepted.round}").path, TrainData.Examples(lessons), TrainDuration.Steps(5),
                    init = accepted.folder, freeze = accepted.freeze,
                ),
            )
            round.run()
            val delta = round.delta(version, signer)
            return FlowerReply.Done(delta.bytes, mapOf("num-examples" to FlowerMetric.Count(lessons.size.toLong())))
        }
    }

    private object Teaching {
        lateinit var lesson: TrainOptions
        suspend fun engine() = tiny()
        fun show(progress: TrainProgress) = check(progress.steps > 0)
    }

    private class TeachWorker(context: Context, parameters: WorkerParameters) : CoroutineWorker(context, parameters) {
        override suspend fun doWork(): Result {
            val trainer = Teaching.engine().trainer(Teaching.lesson)
            return when (val result = trainer.work { Teaching.show(it) }) {
                is WorkResult.Success -> Result.success()
                is WorkResult.Retry -> Result.retry()
                is WorkResult.Failure -> Result.failure(workDataOf("problem" to result.error.message))
            }
        }
    }

    @Test
    fun `what the page says runs`() = running {
        withFolder { filesDir ->
            // In place of the default model, which says more and takes longer.
            longTinyModel(filesDir)
            peft("plain").copyRecursively(File(filesDir, "adapters/pirate"))
            tinyVersion.copyTo(File(filesDir, "replies.version"))
            val said = StringBuilder()
            page(filesDir, { said.append(it) }, { said.append(it).append('\n') })
            val words = listOf("WEIGHTS: ", "tokens/s", "4 modules", "step 5 of 5", "FINISHED", "READY, training at FULL", "nobody", "CANCELLED", "model left: false")
            words.forEach { assertContains(said, it) }
            assertTrue(uploads.single().isNotEmpty() && File(filesDir, "replies.residual").exists())
        }
    }

    @Test
    fun `the page's worker teaches, and says what is wrong`() = running {
        withFolder { folder ->
            Teaching.lesson = lesson(folder, 2)
            val context = ContextWrapper(null)
            assertIs<ListenableWorker.Result.Success>(TeachWorker(context, WorkerParameters()).doWork())
            Teaching.lesson = lesson(folder, data = TrainData.Jsonl("/nowhere"))
            val failure = assertIs<ListenableWorker.Result.Failure>(TeachWorker(context, WorkerParameters()).doWork())
            assertContains(failure.outputData.values["problem"].toString(), "/nowhere")
        }
    }

    @Test
    fun `the page's blocks are what was compiled`() {
        fun lines(text: String) = text.lines().map { it.trim() }.filter { it.isNotEmpty() }.joinToString("\n")
        fun of(path: String) = lines(repository(path).readText())
        val sources = of("android/epiphyte/src/test/kotlin/dev/epiphyte/DocsTest.kt")
        val gradle = of("android/sample/build.gradle.kts")
        val needed = of("android/epiphyte/build.gradle.kts")
        val blocks = Regex("```kotlin( \\w+)?\n(.*?)```", RegexOption.DOT_MATCHES_ALL)
            .findAll(repository("docs/android.md").readText()).map { it.groupValues[1].trim() to it.groupValues[2] }.toList()
        assertTrue(blocks.size >= 14)
        for ((kind, block) in blocks) {
            when (kind) {
                "gradle" -> assertContains(gradle, lines(block))
                "aar" -> Regex("\"[^\"]+:[^\"]+\"").findAll(block).forEach { assertContains(needed, it.value) }
                else -> assertContains(sources, lines(block))
            }
        }
    }
}
