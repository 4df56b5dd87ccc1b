package dev.epiphyte

import java.io.File
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
        val listening = Listening()
        val listener = object : TrainListener {
            override fun onProgress(progress: TrainProgress) = listening.hear {
                latest.value = progress
                onProgress?.invoke(progress)
                Unit
            }
        }
        return listening.during { stoppedByCancellation { core.run(listener) } }
    }

    /**
     * What the run changed since the [version] that it began from, by the plan of the version's round,
     * as a signed file to upload. [signer] is called on a thread of the library's.
     */
    public suspend fun delta(version: File, signer: Signer, options: DeltaOptions = DeltaOptions()): Delta {
        val listening = Listening()
        val callback = listening.signing(signer)
        return listening.during { Delta(core.delta(version.path, callback, options)) }
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
