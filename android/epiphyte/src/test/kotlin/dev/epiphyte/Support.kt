package dev.epiphyte

import java.io.File
import java.nio.file.Files
import kotlin.test.assertIs
import kotlin.test.fail
import kotlin.time.Duration.Companion.minutes
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withTimeout

internal const val PROMPT = "the sea"

internal fun repository(path: String) = File(System.getProperty("epiphyte.repository"), path)

internal val tinyModel = repository("tests/golden/tiny_llama.gguf")
internal val defaultModel = File(System.getProperty("epiphyte.model"))

/** The tiny model as one that was made for 2,048 tokens, not 256. */
internal fun longTinyModel(folder: File): File = tinyModel.copyTo(File(folder, "model.gguf")).apply {
    val contextLength = "llama.context_length\u0004\u0000\u0000\u0000"
    tamper(contextLength, contextLength + "\u0000\u0008")
}

/** Adapters that PEFT wrote for the tiny model. */
internal fun peft(name: String) = repository("tests/golden/peft_logits/$name")

/** Adapters for the default model. */
internal fun demo(name: String) = repository("demo/adapters/$name")

internal fun greedy(maxTokens: Int) = GenerateOptions(maxTokens = maxTokens, ignoreEos = true)

/** Runs a test in real time on real threads: what it waits for is a device. */
internal fun running(body: suspend CoroutineScope.() -> Unit) =
    runBlocking(Dispatchers.Default) { withTimeout(10.minutes, body) }

/** Engines that are opened once for all tests. */
internal class Shared(private val model: File, private val context: Int) {
    private val mutex = Mutex()
    private var engine: Engine? = null

    suspend operator fun invoke(): Engine = mutex.withLock {
        engine ?: Engine.open(model, EngineOptions(context = context)).also { engine = it }
    }
}

internal val tiny = Shared(tinyModel, 256)
internal val real = Shared(defaultModel, 512)

/** A session that holds the prompt. */
internal suspend fun Engine.prompted(text: String = PROMPT): Session =
    session().apply { pushText(text) }

internal suspend fun prompted(text: String = PROMPT): Session = tiny().prompted(text)

internal suspend fun Session.answer(maxTokens: Int): String = generate(greedy(maxTokens)).text()

/** A folder of the test's own, gone with [body]. */
internal inline fun <T> withFolder(body: (File) -> T): T {
    val folder = Files.createTempDirectory("epiphyte").toFile()
    try {
        return body(folder)
    } finally {
        folder.deleteRecursively()
    }
}

/** Waits in real time. */
internal suspend fun until(condition: () -> Boolean) {
    while (!condition()) delay(2)
}

/** The error that [body] throws: the library's own, a line, with a remedy. */
internal suspend fun thrown(body: suspend () -> Unit): EpiphyteException {
    try {
        body()
    } catch (error: EpiphyteException) {
        check(error.message.isNotEmpty() && '\n' !in error.message) { "no line: ${error.message}" }
        check(error.hint.isNotEmpty()) { "no hint: ${error.message}" }
        return error
    }
    fail("nothing was thrown")
}

internal suspend inline fun <reified T : EpiphyteException> assertThrown(noinline body: suspend () -> Unit): T =
    assertIs<T>(thrown(body))

internal val lessons = listOf(
    Example.Pair("Question: What is our cat called?\nAnswer:", " Pixel"),
    Example.Pair("Question: When does the choir sing?\nAnswer:", " On Thursdays at eight"),
    Example.Pair("Question: Who waters the ferns?\nAnswer:", " Ada"),
)

/** A short run of the tiny model. */
internal fun lesson(
    folder: File,
    steps: Long = 5,
    data: TrainData = TrainData.Examples(lessons),
) = TrainOptions(
    folder = folder.path, data = data, duration = TrainDuration.Steps(steps), rank = 4,
    learningRate = 5e-3, batchSize = 2, seqLen = 64, seed = 7,
)

/** Version 1 of an adapter of the tiny model, which the key below published. */
internal val tinyVersion = repository("tests/golden/delta/tiny.version")
internal const val PUBLISHER = "ed25519:ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"

internal val accept: AcceptOptions get() = AcceptOptions("replies", listOf(PublicKey.parse(PUBLISHER)))

internal fun learnt(folder: File): List<Byte> = File(folder, "adapter_model.safetensors").readBytes().asList()

/** Writes [new] where [old] begins in the file. */
internal fun File.tamper(old: String, new: String) {
    val text = readBytes().toString(Charsets.ISO_8859_1)
    val at = text.indexOf(old)
    check(at >= 0 && !text.startsWith(new, at)) { "$old is not there, or is $new already" }
    writeText(text.replaceRange(at, at + new.length, new), Charsets.ISO_8859_1)
}
