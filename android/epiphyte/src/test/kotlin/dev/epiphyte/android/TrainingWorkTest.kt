package dev.epiphyte.android

import dev.epiphyte.EpiphyteException
import dev.epiphyte.TrainData
import dev.epiphyte.TrainPhase
import dev.epiphyte.lesson
import dev.epiphyte.running
import dev.epiphyte.tiny
import dev.epiphyte.until
import dev.epiphyte.withFolder
import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch

class TrainingWorkTest {
    @Test
    fun `a run that ends is a success`() = running {
        withFolder { folder ->
            val result = assertIs<WorkResult.Success>(tiny().trainer(lesson(folder, 3)).work())
            assertEquals(3, result.outcome.steps)
        }
    }

    @Test
    fun `a job that has to stop leaves a run that the next job goes on with`() = running {
        withFolder { folder ->
            val first = tiny().trainer(lesson(folder, 100_000))
            val job = launch { first.work() }
            until { (first.progress.value?.step ?: 0) >= 2 }
            job.cancelAndJoin()
            val done = first.progress.value!!.step
            val second = tiny().trainer(lesson(folder, done + 2))
            assertEquals(done, assertIs<WorkResult.Success>(second.work()).outcome.resumedFrom)
        }
    }

    @Test
    fun `a run that was stopped, or is another job's, is tried again`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 100_000))
            val job = async { trainer.work() }
            until { trainer.progress.value?.phase == TrainPhase.STEP }
            assertEquals(WorkResult.Retry, trainer.work())
            trainer.stop()
            assertEquals(WorkResult.Retry, job.await())
        }
    }

    @Test
    fun `what will not get better is a failure`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, data = TrainData.Jsonl(File(folder, "nowhere").path)))
            assertTrue(assertIs<WorkResult.Failure>(trainer.work()).error is EpiphyteException.Io)
        }
    }
}
