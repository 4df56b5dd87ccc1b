package dev.epiphyte

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class TrainerTest {
    @Test
    fun `five steps of the default model, with progress`() = running {
        withFolder { folder ->
            val steps = mutableListOf<TrainProgress>()
            // One short example: on a software GPU each step is a second or more.
            val options = lesson(folder, data = TrainData.Examples(lessons.take(1))).copy(batchSize = 1)
            val trainer = real().trainer(options)
            val outcome = trainer.run { if (it.phase == TrainPhase.STEP) steps += it }
            assertEquals(TrainEnd.FINISHED, outcome.end)
            assertEquals(listOf(1L, 2, 3, 4, 5), steps.map { it.step })
            assertTrue(outcome.loss.last!! < outcome.loss.first!!)
            assertEquals(5, trainer.progress.value?.step)
            assertTrue(real().loadAdapter("learnt", folder).modules.isNotEmpty())
            real().unloadAdapter("learnt")
        }
    }

    @Test
    fun `a run that was stopped goes on to the same bits`() = running {
        withFolder { folder ->
            val whole = File(folder, "whole")
            val parts = File(folder, "parts")
            tiny().trainer(lesson(whole)).run()
            val first = tiny().trainer(lesson(parts))
            val stopped = first.run { if (it.phase == TrainPhase.STEP && it.step == 2L) first.stop() }
            assertEquals(TrainEnd.INTERRUPTED to 2L, stopped.end to stopped.steps)
            val rest = tiny().trainer(lesson(parts)).run()
            assertEquals(TrainEnd.FINISHED to 2L, rest.end to rest.resumedFrom)
            assertEquals(learnt(whole), learnt(parts))
        }
    }

    @Test
    fun `a cancelled coroutine leaves a run that has ended`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 10_000))
            val run = launch { trainer.run() }
            until { (trainer.progress.value?.step ?: 0) >= 2 }
            assertTrue(trainer.isRunning)
            run.cancelAndJoin()
            assertFalse(trainer.isRunning)
            val done = trainer.progress.value!!.step
            val rest = tiny().trainer(lesson(folder, done + 1)).run()
            assertEquals(TrainEnd.FINISHED to done, rest.end to rest.resumedFrom)
        }
    }

    @Test
    fun `a run that waits leaves the device to others`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 30))
            val run = async { trainer.run { if (it.phase == TrainPhase.STEP && it.step == 1L) trainer.pause() } }
            until { trainer.progress.value?.phase == TrainPhase.PAUSED }
            assertTrue(trainer.isPaused)
            val step = trainer.progress.value!!.step
            assertTrue(prompted().answer(4).isNotEmpty())
            assertEquals(step, trainer.progress.value!!.step)
            trainer.resume()
            assertEquals(TrainEnd.FINISHED, run.await().end)
        }
    }

    @Test
    fun `answers come while it trains`() = running {
        withFolder { folder ->
            val run = async { tiny().trainer(lesson(folder, 20)).run() }
            repeat(3) { assertTrue(prompted().answer(8).isNotEmpty()) }
            assertEquals(TrainEnd.FINISHED, run.await().end)
        }
    }

    @Test
    fun `one run of a trainer at a time`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 10_000))
            val run = async { trainer.run() }
            until { trainer.progress.value != null }
            assertThrown<EpiphyteException.Busy> { trainer.run() }
            trainer.stop()
            assertEquals(TrainEnd.INTERRUPTED, run.await().end)
        }
    }

    @Test
    fun `a folder belongs to one run at a time`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 10_000))
            val run = async { trainer.run() }
            until { trainer.progress.value != null }
            thrown { tiny().trainer(lesson(folder, 10_000)).run() }
            trainer.stop()
            run.await()
        }
    }

    @Test
    fun `what a listener throws stops the run and is the cause`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 10_000))
            val error = assertThrown<EpiphyteException.Callback> { trainer.run { error("mine") } }
            assertEquals("mine", error.cause?.message)
            assertFalse(trainer.isRunning)
        }
    }

    @Test
    fun `closing the engine ends the run`() = running {
        withFolder { folder ->
            val engine = Engine.open(tinyModel, EngineOptions(context = 128))
            val trainer = engine.trainer(lesson(folder, 10_000))
            assertThrown<EpiphyteException.Closed> { trainer.run { if (it.step == 2L) engine.close() } }
            assertThrown<EpiphyteException.Closed> { trainer.run() }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = ["""{"text": "\ud800 alone"}""", "no JSON", """{"prompt": 1}""", ""])
    fun `a bad record is refused by its line and not quoted`(line: String) = running {
        withFolder { folder ->
            val file = File(folder, "data.jsonl").apply { writeText(line + "\n") }
            val run = lesson(File(folder, "run"), data = TrainData.Jsonl(file.path))
            val error = thrown { tiny().trainer(run).run() }
            assertTrue(line.isEmpty() || line !in error.message)
        }
    }

    @Test
    fun `data that is not there is refused`() = running {
        withFolder { folder ->
            val run = File(folder, "run")
            assertThrown<EpiphyteException.Io> {
                tiny().trainer(lesson(run, data = TrainData.Jsonl(File(folder, "nowhere").path))).run()
            }
            thrown { tiny().trainer(lesson(run, data = TrainData.Jsonl(folder.path))).run() }
            thrown { tiny().trainer(lesson(run, data = TrainData.Examples(emptyList()))).run() }
        }
    }

    @Test
    fun `wrong settings are refused by name`() = running {
        withFolder { folder ->
            val error = assertThrown<EpiphyteException.InvalidArgument> {
                tiny().trainer(lesson(folder).copy(rank = -1)).run()
            }
            assertEquals("rank", error.name)
            thrown { tiny().trainer(lesson(folder).copy(targetModules = listOf("no_such_module"))).run() }
            thrown { tiny().trainer(lesson(folder).copy(learningRate = Double.NaN)).run() }
        }
    }
}
