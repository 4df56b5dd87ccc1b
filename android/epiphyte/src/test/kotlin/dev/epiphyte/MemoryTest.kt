package dev.epiphyte

import com.sun.jna.Function
import com.sun.jna.Structure
import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** Handles are freed when they are closed, not when Java comes round to it. */
class MemoryTest {
    @Suppress("unused")
    @Structure.FieldOrder("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    class Allocated : Structure(), Structure.ByValue {
        @JvmField var arena = 0L
        @JvmField var ordblks = 0L
        @JvmField var smblks = 0L
        @JvmField var hblks = 0L
        @JvmField var hblkhd = 0L
        @JvmField var usmblks = 0L
        @JvmField var fsmblks = 0L
        @JvmField var uordblks = 0L
        @JvmField var fordblks = 0L
        @JvmField var keepcost = 0L
    }

    /** Bytes that are allocated and not freed: in the C library, driver included, and in Java. */
    private fun held(): Long {
        // What is freed by reference queues takes a collection more.
        repeat(3) {
            System.gc()
            Thread.sleep(100)
        }
        val native = Function.getFunction("c", "mallinfo2").invoke(Allocated::class.java, emptyArray()) as Allocated
        val runtime = Runtime.getRuntime()
        return native.uordblks + native.hblkhd + runtime.totalMemory() - runtime.freeMemory()
    }

    private fun threads() = File("/proc/self/task").list()!!.size

    /** By how much memory grows over [rounds] of [body], after a fifth as many that are not counted. */
    private suspend fun growth(rounds: Int, body: suspend () -> Unit): Long {
        repeat(rounds / 5) { body() }
        val before = held()
        val threads = threads()
        repeat(rounds) { body() }
        val growth = held() - before
        println("$rounds rounds: $growth bytes and ${threads() - threads} threads more")
        assertTrue(threads() <= threads + 4, "threads end with their work")
        return growth
    }

    @Test
    fun `a thousand sessions leave nothing`() = running {
        val engine = tiny()
        suspend fun round() = engine.prompted().use { it.answer(1) }
        round()
        val bytes = engine.deviceBytes
        val growth = growth(1000) { round() }
        assertEquals(bytes, engine.deviceBytes)
        assertTrue(growth < 16 shl 20, "$growth bytes more")
    }

    @Test
    fun `fifty engines leave nothing`() = running {
        val growth = growth(50) {
            val engine = Engine.open(tinyModel, EngineOptions(context = 64))
            engine.use { it.prompted().answer(1) }
            engine.closed()
        }
        assertTrue(growth < 16 shl 20, "$growth bytes more")
    }
}
