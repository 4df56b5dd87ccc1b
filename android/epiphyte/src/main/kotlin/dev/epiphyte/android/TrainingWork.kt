package dev.epiphyte.android

import dev.epiphyte.EpiphyteException
import dev.epiphyte.TrainEnd
import dev.epiphyte.TrainOutcome
import dev.epiphyte.TrainProgress
import dev.epiphyte.Trainer

/** What a background job says when it is done, as WorkManager's `ListenableWorker.Result`. */
public sealed interface WorkResult {
    /** The adapter is in the folder. */
    public data class Success(val outcome: TrainOutcome) : WorkResult

    /** Not yet: the next run of the job goes on after the last checkpoint. */
    public data object Retry : WorkResult

    /** It will not do better next time. */
    public data class Failure(val error: EpiphyteException) : WorkResult
}

/**
 * The whole of a background job: trains, or goes on with what a job before it began, whether that
 * was stopped or killed. Cancelling the coroutine, as WorkManager does when a job has to stop, ends
 * the run with a checkpoint.
 */
public suspend fun Trainer.work(onProgress: ((TrainProgress) -> Unit)? = null): WorkResult = try {
    val outcome = run(onProgress)
    if (outcome.end == TrainEnd.INTERRUPTED) WorkResult.Retry else WorkResult.Success(outcome)
} catch (error: EpiphyteException) {
    if (error.mayPass) WorkResult.Retry else WorkResult.Failure(error)
}

/** It is the phone's present state that is in the way. */
private val EpiphyteException.mayPass: Boolean
    get() = when (this) {
        is EpiphyteException.Busy, is EpiphyteException.Closed, is EpiphyteException.Background,
        is EpiphyteException.DeviceLost, is EpiphyteException.OutOfMemory -> true
        else -> false
    }
