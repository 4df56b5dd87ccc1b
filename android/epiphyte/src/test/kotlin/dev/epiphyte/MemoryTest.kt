package dev.epiphyte

import com.sun.jna.Function
import com.sun.jna.NativeLong
import java.io.File
import kotlin.test.Test
import kotlin.test.assertTrue

/** Handles are freed when they are closed, not when Java comes round to it. */
class MemoryTest {
    private val status = File("/proc/self/statm")

    /** Bytes of this process in memory, once Java and the C library gave back what is free. */
    private fun resident(): Long {
        System.gc()
        Function.getFunction("c", "malloc_trim").invokeInt(arrayOf(NativeLong(0)))
        return status.readText().split(" ")[1].toLong() * 4096
    }

    /** By how much memory grows over [rounds] of [body], the first fifth of which are not counted. */
    private suspend fun growth(rounds: Int, body: suspend () -> Unit): Long {
        repeat(rounds / 5) { body() }
        val before = resident()
        repeat(rounds - rounds / 5) { body() }
        return resident() - before
    }

    @Test
    fun `a thousand sessions leave nothing`() = running {
        val engine = tiny()
        suspend fun round() = engine.prompted().use { it.answer(1) }
        round()
        val bytes = engine.deviceBytes
        val growth = growth(1000) { round() }
        println("1,000 sessions: $growth bytes more")
        assertTrue(engine.deviceBytes <= bytes)
        assertTrue(growth < 16 shl 20, "$growth bytes more")
    }

    @Test
    fun `fifty engines leave nothing`() = running {
        val growth = growth(50) {
            val engine = Engine.open(tinyModel, EngineOptions(context = 64))
            engine.use { it.prompted().answer(1) }
            engine.closed()
        }
        println("50 engines: $growth bytes more")
        assertTrue(growth < 32 shl 20, "$growth bytes more")
    }
}
