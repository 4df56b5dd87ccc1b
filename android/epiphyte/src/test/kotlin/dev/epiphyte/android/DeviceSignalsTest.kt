package dev.epiphyte.android

import android.app.Activity
import android.content.ComponentCallbacks2
import android.content.Intent
import android.os.PowerManager
import dev.epiphyte.Engine
import dev.epiphyte.EngineOptions
import dev.epiphyte.EnginePhase
import dev.epiphyte.ThermalState
import dev.epiphyte.TrainEnd
import dev.epiphyte.TrainPhase
import dev.epiphyte.TrainingPace
import dev.epiphyte.lesson
import dev.epiphyte.running
import dev.epiphyte.tiny
import dev.epiphyte.tinyModel
import dev.epiphyte.withFolder
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.first
import sun.misc.Unsafe

/** What Android calls, called as it does; registering with it takes a phone. */
class DeviceSignalsTest {
    private suspend fun engine() = Engine.open(tinyModel, EngineOptions(context = 64))

    /** One of Android's objects as the JVM can have it: with nothing inside. */
    private inline fun <reified T> hollow(): T {
        val unsafe = Unsafe::class.java.getDeclaredField("theUnsafe").apply { isAccessible = true }
        return (unsafe.get(null) as Unsafe).allocateInstance(T::class.java) as T
    }

    @Test
    fun `memory is given back by the level that Android names`() = running {
        engine().use { engine ->
            coroutineScope { MemoryCallbacks(engine, this).onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN) }
            assertEquals(EnginePhase.READY to 1L, engine.state.value.run { phase to memoryWarnings })
            coroutineScope { MemoryCallbacks(engine, this).onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_COMPLETE) }
            assertEquals(EnginePhase.UNLOADED to 2L, engine.state.value.run { phase to memoryWarnings })
            engine.close()
            coroutineScope { MemoryCallbacks(engine, this).onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_COMPLETE) }
        }
    }

    @Test
    fun `heat is told on`() = running {
        engine().use { engine ->
            val listener = ThermalListener(engine)
            listener.onThermalStatusChanged(PowerManager.THERMAL_STATUS_SEVERE)
            assertEquals(ThermalState.SERIOUS to TrainingPace.PAUSED, engine.state.value.run { thermal to training })
            listener.onThermalStatusChanged(PowerManager.THERMAL_STATUS_NONE)
            assertEquals(ThermalState.NOMINAL to TrainingPace.FULL, engine.state.value.run { thermal to training })
        }
    }

    @Test
    fun `the GPU rests while no activity is started, and not when the screen turns`() = running {
        engine().use { engine ->
            val callbacks = ScreenCallbacks(engine)
            val (one, other) = List(2) { hollow<Activity>() }
            fun phase() = engine.state.value.phase
            callbacks.onActivityStarted(one)
            callbacks.onActivityStarted(other)
            callbacks.onActivityStopped(one)
            assertEquals(EnginePhase.READY, phase())
            callbacks.onActivityStopped(other)
            assertEquals(EnginePhase.BACKGROUND, phase())
            callbacks.onActivityStarted(one)
            assertEquals(EnginePhase.READY, phase())
            val turning = Activity::class.java.getDeclaredField("mChangingConfigurations")
            turning.apply { isAccessible = true }.setBoolean(one, true)
            callbacks.onActivityStopped(one)
            assertEquals(EnginePhase.READY, phase())
        }
    }

    @Test
    fun `training waits while the battery is low`() = running {
        withFolder { folder ->
            val trainer = tiny().trainer(lesson(folder, 3))
            val receiver = BatteryReceiver(trainer)
            val run = async { trainer.run() }
            receiver.onReceive(null, Intent(Intent.ACTION_BATTERY_LOW))
            trainer.progress.first { it?.phase == TrainPhase.PAUSED }
            receiver.onReceive(null, Intent(Intent.ACTION_BATTERY_CHANGED))
            assertTrue(trainer.isPaused)
            receiver.onReceive(null, Intent(Intent.ACTION_BATTERY_OKAY))
            assertTrue(!trainer.isPaused)
            assertEquals(TrainEnd.FINISHED, run.await().end)
        }
    }
}
