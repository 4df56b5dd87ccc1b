package dev.epiphyte

import java.io.File
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.withContext

/**
 * A conversation or a document in progress. Usable from any thread; a call waits for the one before
 * it, and throws [EpiphyteException.Busy] while an answer is running, except [setAdapters].
 */
public class Session internal constructor(
    internal val core: CoreSession,
    /** Held, so that it is not collected, which closes it, while the session is in use. */
    private val engine: Engine,
) : AutoCloseable {
    @Volatile private var answer: CoreGeneration? = null
    @Volatile private var last: AnswerStats? = null

    /** Adds text as it stands, without a chat template. */
    public suspend fun pushText(text: String): Unit = calling { core.pushText(text) }

    /** Adds token ids. */
    public suspend fun pushTokens(ids: List<Int>): Unit = calling { core.pushTokens(ids) }

    /**
     * Makes the session hold this conversation in the model's own template, ready for an answer.
     * What it holds of it already is not computed again.
     */
    public suspend fun setMessages(
        messages: List<Message>,
        options: PromptOptions = PromptOptions(),
    ): Unit = calling { core.setPrompt(messages, options) }

    /** As above. */
    public suspend fun setMessages(vararg messages: Message): Unit = setMessages(messages.asList())

    /** How many tokens it holds; those of a running answer as they are handed out. */
    public val tokenCount: Int get() = calling { core.tokenCount() }

    /** Everything said so far, as token ids. */
    public suspend fun tokens(): List<Int> = calling { core.tokens() }

    /** Forgets everything after the first [length] tokens. */
    public suspend fun truncate(length: Int): Unit = calling { core.truncate(length) }

    /**
     * The answer to what the session holds. It begins when the flow is collected, each token is
     * computed when the collector wants it, and the session holds afterwards exactly what was
     * collected. Cancelling the collector, or leaving it as `take` does, ends the answer.
     */
    public fun generate(options: GenerateOptions = GenerateOptions()): Flow<Token> = flow {
        val answer = calling { core.generate(options) }
        this@Session.answer = answer
        try {
            val take = Shortcut.Take { buffer, room, wake, task ->
                Shortcut.epiphyte_generation_take(answer.handle, buffer, room, wake, task)
            }
            val next = suspend { calling { answer.next() }?.let { BatchToken(0, it) } }
            Shortcut.pull(take, next = { next() }) { emit(it.token) }
        } finally {
            this@Session.answer = null
            answer.cancel()
            last = answer.stats()
            answer.close()
        }
    }

    /** What the running answer took so far, or else the latest one; null before the first. */
    public val stats: AnswerStats? get() = answer?.stats() ?: last

    /**
     * Changes the adapters: those given, each times its weight, and no others. In the middle of an
     * answer it takes effect with the next token; with [KvPolicy.KEEP] the tokens under way (at
     * most 3) still come from the old ones.
     */
    public suspend fun setAdapters(
        adapters: List<AdapterWeight>,
        history: KvPolicy = KvPolicy.RECOMPUTE,
    ): Unit = calling { answer?.setAdapters(adapters, history) ?: core.setAdapters(adapters, history) }

    /** As above, of the adapters of these ids at weight 1; of none, the base alone answers. */
    public suspend fun setAdapters(vararg ids: String): Unit = setAdapters(ids.map { AdapterWeight(it) })

    /** Its adapters and their weights. */
    public suspend fun adapters(): List<AdapterWeight> = calling { core.adapters() }

    /** Runs [block] with one adapter more than before, and with those from before after it. */
    public suspend fun <T> withAdapter(
        id: String,
        weight: Float = 1f,
        history: KvPolicy = KvPolicy.RECOMPUTE,
        block: suspend (Session) -> T,
    ): T {
        val before = adapters()
        setAdapters(before.filter { it.id != id } + AdapterWeight(id, weight), history)
        try {
            return block(this)
        } finally {
            withContext(NonCancellable) { setAdapters(before, history) }
        }
    }

    /** A second session that goes on from the same point; what was computed is shared. */
    public suspend fun fork(): Session = Session(calling { core.fork() }, engine)

    /** Writes everything to a file that [Engine.restore] reads. Complete or not there at all. */
    public suspend fun save(file: File): Unit = calling { core.save(file.path) }

    /**
     * Frees what it holds, at once or when the call that is running ends; a running answer ends.
     * Calls throw [EpiphyteException.Closed] from now on; a second close does nothing.
     */
    override fun close(): Unit = core.shut()
}

/** The whole answer. */
public suspend fun Flow<Token>.text(): String {
    val text = StringBuilder()
    collect { text.append(it.text) }
    return text.toString()
}

/** What the app says before a conversation. */
public fun Message.Companion.system(content: String): Message = Message("system", content)

/** What the user says. */
public fun Message.Companion.user(content: String): Message = Message("user", content)

/** What the model said. */
public fun Message.Companion.assistant(content: String): Message = Message("assistant", content)
