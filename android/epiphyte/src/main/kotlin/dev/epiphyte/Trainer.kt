package dev.epiphyte

import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/**
 * A training run in a folder. What was begun there and not finished goes on, also after the app was
 * killed.
 */
public class Trainer internal constructor(
    private val core: CoreTrainer,
    /** Held, so that it is not collected, which closes it, while the trainer is in use. */
    private val engine: Engine,
) {
    private val latest = MutableStateFlow<TrainProgress?>(null)

    /** Where the run stands; null before its first word. */
    public val progress: StateFlow<TrainProgress?> = latest.asStateFlow()

    /**
     * Trains to the end, or until it is stopped, and leaves the adapter in the folder. Cancelling
     * the coroutine stops the run with a checkpoint, which this waits for. [onProgress] is called on
     * a thread of the library's; what it throws stops the run too.
     */
    public suspend fun run(onProgress: ((TrainProgress) -> Unit)? = null): TrainOutcome {
        val listening = Listening<TrainProgress> {
            latest.value = it
            onProgress?.invoke(it)
        }
        val listener = object : TrainListener {
            override fun onProgress(progress: TrainProgress) = listening.hear(progress)
        }
        return listening.during { stoppedByCancellation { core.run(listener) } }
    }

    /** Lets the run wait once the present step is done; its memory stays taken. */
    public fun pause(): Unit = core.pause()

    /** Lets a run that waits go on. */
    public fun resume(): Unit = core.resume()

    /** Ends the run soon, with a checkpoint; before one, it ends the next at its beginning. */
    public fun stop(): Unit = core.stop()

    /** A run is going on, also one that waits. */
    public val isRunning: Boolean get() = core.isRunning()

    /** [pause] was asked for last. */
    public val isPaused: Boolean get() = core.isPaused()

    private suspend fun <T> stoppedByCancellation(run: suspend () -> T): T = coroutineScope {
        var over = false
        val watch = launch(start = CoroutineStart.UNDISPATCHED) {
            try {
                awaitCancellation()
            } finally {
                if (!over) core.stop()
            }
        }
        try {
            withContext(NonCancellable) { run() }
        } finally {
            over = true
            watch.cancel()
        }
    }
}
