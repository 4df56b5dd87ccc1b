package dev.epiphyte.sample

import dev.epiphyte.AdapterWeight
import dev.epiphyte.Engine
import dev.epiphyte.EngineOptions
import dev.epiphyte.EpiphyteException
import dev.epiphyte.Example
import dev.epiphyte.GenerateOptions
import dev.epiphyte.Message
import dev.epiphyte.ModelSource
import dev.epiphyte.TrainData
import dev.epiphyte.TrainEnd
import dev.epiphyte.TrainOptions
import dev.epiphyte.TrainPhase
import dev.epiphyte.assistant
import dev.epiphyte.user
import java.io.File
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update

/** What the screen shows. A feature is an adapter; one that was taught is one of them. */
data class Screen(
    val ready: Boolean = false,
    val features: List<String> = emptyList(),
    val answer: String = "",
    val tokensPerSecond: Double? = null,
    val losses: List<Double> = emptyList(),
    val problem: String? = null,
)

/** A question and the answer to learn. */
data class Lesson(val question: String, val answer: String)

/** What the screen's buttons do. [bundled] are the app's own adapters by name; those learnt are kept in [folder]. */
class Assistant(
    private val model: ModelSource,
    private val bundled: Map<String, File>,
    private val folder: File,
) : AutoCloseable {
    private val shown = MutableStateFlow(Screen())
    val screen: StateFlow<Screen> = shown.asStateFlow()

    var engine: Engine? = null
        private set

    /** Loads the model, and every adapter that there is. */
    suspend fun open() = reporting {
        val engine = Engine.open(model, EngineOptions(context = 1024))
        this.engine = engine
        val learnt = folder.listFiles().orEmpty().associateBy { it.name }
        for ((name, file) in learnt + bundled) {
            // A folder whose run has not come to its first step holds none yet.
            if (runCatching { engine.loadAdapter(name, file) }.isSuccess) show(name)
        }
        shown.update { it.copy(ready = true) }
    }

    /** Streams an answer with a feature, or with none. Cancel the coroutine to stop it. */
    suspend fun ask(prompt: String, feature: String?) = reporting {
        shown.update { it.copy(answer = "", tokensPerSecond = null) }
        val engine = engine ?: return@reporting
        engine.session().use { session ->
            session.setAdapters(listOfNotNull(feature).map { AdapterWeight(it) })
            session.setMessages(Message.user(prompt))
            session.generate(GenerateOptions(maxTokens = 200)).collect { token ->
                val speed = session.stats?.decodeTokensPerSecond
                shown.update { it.copy(answer = it.answer + token.text, tokensPerSecond = speed) }
            }
        }
    }

    /** Learns from questions and their answers, and adds what was learnt as a feature. */
    suspend fun teach(name: String, lessons: List<Lesson>) = reporting {
        shown.update { it.copy(losses = emptyList()) }
        val engine = engine ?: return@reporting
        val examples = lessons.map { Example.Chat(listOf(Message.user(it.question), Message.assistant(it.answer))) }
        val run = File(folder, name)
        val trainer = engine.trainer(TrainOptions(run.path, TrainData.Examples(examples)))
        val outcome = trainer.run { progress ->
            val loss = progress.loss
            if (progress.phase == TrainPhase.STEP && loss != null) shown.update { it.copy(losses = it.losses + loss) }
        }
        if (outcome.end == TrainEnd.INTERRUPTED) return@reporting
        engine.loadAdapter(name, run)
        show(name)
    }

    override fun close() {
        engine?.close()
    }

    private fun show(feature: String) = shown.update { it.copy(features = (it.features + feature).distinct().sorted()) }

    private suspend fun reporting(work: suspend () -> Unit) {
        shown.update { it.copy(problem = null) }
        try {
            work()
        } catch (error: EpiphyteException) {
            shown.update { it.copy(problem = error.message) }
        }
    }
}
