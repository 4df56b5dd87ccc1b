/** WorkManager's classes as far as docs/android.md names them: Google's repository is out of reach here. */
package androidx.work

import android.content.Context

class WorkerParameters

class Data(val values: Map<String, Any?>)

fun workDataOf(vararg pairs: Pair<String, Any?>): Data = Data(pairs.toMap())

abstract class ListenableWorker {
    sealed class Result {
        class Success : Result()
        class Retry : Result()
        class Failure(val outputData: Data) : Result()

        companion object {
            fun success(): Result = Success()
            fun retry(): Result = Retry()
            fun failure(outputData: Data): Result = Failure(outputData)
        }
    }
}

@Suppress("unused")
abstract class CoroutineWorker(context: Context, parameters: WorkerParameters) : ListenableWorker() {
    abstract suspend fun doWork(): Result
}
