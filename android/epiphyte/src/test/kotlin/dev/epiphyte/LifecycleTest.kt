package dev.epiphyte

import dev.epiphyte.android.WorkResult
import dev.epiphyte.android.work
import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.EnumSource

/** docs/lifecycle.md, through the border. */
class LifecycleTest {
    private suspend fun engine() = Engine.open(tinyModel, EngineOptions(context = 256))

    @ParameterizedTest
    @EnumSource
    fun `memory is given back in the middle of an answer`(level: MemoryLevel) = running {
        engine().use { engine ->
            engine.loadAdapter("plain", peft("plain"))
            val session = engine.session().apply { setAdapters("plain") }
            session.pushText(PROMPT)
            val expected = session.fork().answer(12)
            val text = StringBuilder()
            session.generate(greedy(12)).collect { token ->
                text.append(token.text)
                if (session.stats?.generatedTokens != 4) return@collect
                val report = engine.memoryPressure(level)
                assertEquals(level, report.level)
                assertEquals(report.freed.sumOf { it.bytes }, report.freedBytes)
                assertEquals(level != MemoryLevel.COMPLETE, report.modelLeft)
                assertEquals(engine.deviceBytes, engine.classBytes.sumOf { it.bytes })
                val phase = if (report.modelLeft) EnginePhase.READY else EnginePhase.UNLOADED
                assertEquals(phase, engine.state.value.phase)
            }
            assertEquals(expected, text.toString())
            assertEquals(1, engine.state.value.memoryWarnings)
            assertEquals(session.tokenCount, session.tokens().size)
        }
    }

    @ParameterizedTest
    @EnumSource
    fun `training outlives it to the same bits`(level: MemoryLevel) = running {
        withFolder { folder ->
            val whole = File(folder, "whole")
            val pressed = File(folder, "pressed")
            tiny().trainer(lesson(whole, 6)).run()
            engine().use { engine ->
                val trainer = engine.trainer(lesson(pressed, 6))
                val run = async { trainer.run() }
                trainer.progress.first { it?.phase == TrainPhase.STEP }
                assertEquals(level, engine.memoryPressure(level).level)
                assertEquals(TrainEnd.FINISHED, run.await().end)
            }
            assertEquals(learnt(whole), learnt(pressed))
        }
    }

    @Test
    fun `what needs the GPU is refused in the background`() = running {
        engine().use { engine ->
            val expected = engine.prompted().answer(12)
            val session = engine.prompted()
            val text = StringBuilder()
            val refused = thrown {
                session.generate(greedy(12)).collect { token ->
                    text.append(token.text)
                    engine.background()
                }
            }
            assertTrue(refused is EpiphyteException.Background, "$refused")
            assertEquals(EnginePhase.BACKGROUND, engine.state.value.phase)
            assertThrown<EpiphyteException.Background> { engine.loadAdapter("plain", peft("plain")) }
            assertTrue(engine.prompted("a whale").tokenCount > 0, "what needs none goes on")
            engine.foreground()
            // The session holds what was collected, and goes on from there.
            val left = 12 - session.stats!!.generatedTokens
            assertEquals(expected, text.append(session.answer(left)).toString())
        }
    }

    @Test
    fun `training waits in the background`() = running {
        withFolder { folder ->
            engine().use { engine ->
                val trainer = engine.trainer(lesson(folder, 10_000))
                val run = async { trainer.run() }
                trainer.progress.first { it?.phase == TrainPhase.STEP }
                engine.background()
                val waiting = trainer.progress.first { it?.phase == TrainPhase.PAUSED }!!
                assertEquals(TrainingPace.PAUSED, engine.state.value.training)
                engine.foreground()
                trainer.progress.first { it!!.step > waiting.step }
                trainer.stop()
                assertEquals(TrainEnd.INTERRUPTED, run.await().end)
            }
        }
    }

    @Test
    fun `a job that would begin in the background is tried again`() = running {
        withFolder { folder ->
            engine().use { engine ->
                engine.background()
                assertEquals(WorkResult.Retry, engine.trainer(lesson(folder, 2)).work())
                engine.foreground()
                assertIs<WorkResult.Success>(engine.trainer(lesson(folder, 2)).work())
            }
        }
    }

    @Test
    fun `heat changes the pace and nothing else`() = running {
        engine().use { engine ->
            val expected = engine.prompted().answer(4)
            for ((heat, pace) in listOf(
                ThermalState.FAIR to TrainingPace.SLOWED, ThermalState.SERIOUS to TrainingPace.PAUSED,
                ThermalState.CRITICAL to TrainingPace.PAUSED, ThermalState.NOMINAL to TrainingPace.FULL,
            )) {
                engine.thermal(heat)
                assertEquals(heat to pace, engine.state.value.run { thermal to training })
                assertEquals(expected, engine.prompted().answer(4))
            }
        }
    }

    @Test
    fun `the state is a flow`() = running {
        val engine = engine()
        val seen = mutableListOf<EnginePhase>()
        val watching = launch(start = CoroutineStart.UNDISPATCHED) { engine.state.collect { seen += it.phase } }
        engine.background()
        until { seen.lastOrNull() == EnginePhase.BACKGROUND }
        engine.foreground()
        until { seen.last() == EnginePhase.READY }
        assertEquals(EnginePhase.READY, seen.first())
        // Nothing changes any more, and whoever waits for it can be cancelled.
        engine.close()
        engine.closed()
        assertEquals(EnginePhase.READY, engine.state.value.phase)
        assertTrue(watching.isActive)
        watching.cancelAndJoin()
    }

    @Test
    fun `a closed engine minds nothing`() = running {
        val engine = engine()
        engine.close()
        engine.thermal(ThermalState.CRITICAL)
        engine.background()
        engine.foreground()
        assertThrown<EpiphyteException.Closed> { engine.memoryPressure(MemoryLevel.LOW) }
        assertThrown<EpiphyteException.Closed> { engine.classBytes }
    }
}
