package dev.epiphyte

import kotlinx.coroutines.ExperimentalForInheritanceCoroutinesApi
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.StateFlow

/**
 * An engine's own state as a flow. It asks the engine, so that [value] is never behind a call that
 * has returned, and nothing runs for it while nobody collects.
 */
@OptIn(ExperimentalForInheritanceCoroutinesApi::class)
internal class States(private val core: CoreEngine) : StateFlow<EngineState> {
    @Volatile private var last = calling { core.state() }

    override val value: EngineState
        get() = try {
            calling { core.state() }.also { last = it }
        } catch (_: EpiphyteException.Closed) {
            last
        }

    override val replayCache: List<EngineState> get() = listOf(value)

    override suspend fun collect(collector: FlowCollector<EngineState>): Nothing {
        var shown: EngineState? = null
        suspend fun show(state: EngineState) {
            if (state != shown) collector.emit(state)
            shown = state
        }
        calling { core.states() }.use { states ->
            while (true) show(calling { states.next() } ?: break)
        }
        // A closed engine does not change any more.
        show(value)
        awaitCancellation()
    }
}
