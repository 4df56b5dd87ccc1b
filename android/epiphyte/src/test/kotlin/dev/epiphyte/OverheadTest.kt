package dev.epiphyte

import java.io.File
import kotlin.test.Test
import kotlin.test.assertTrue
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable

/** What a token costs through Kotlin beyond what it costs in Rust, by this repository's own program on the same device. */
@EnabledIfEnvironmentVariable(named = "EPIPHYTE_OVERHEAD", matches = ".+")
class OverheadTest {
    private val program = System.getenv("EPIPHYTE_OVERHEAD") ?: ""

    /** Seconds a token, the first one not counted. */
    private suspend fun kotlin(engine: Engine, tokens: Int): Double = engine.prompted().use { session ->
        var first = 0L
        session.generate(greedy(tokens)).collect { if (first == 0L) first = System.nanoTime() }
        (System.nanoTime() - first) / 1e9 / (tokens - 1)
    }

    private fun rust(model: File, tokens: Int): Double {
        val command = listOf(program, "generate", "-m", model.path, "--json", "--ignore-eos", "-n", "$tokens", "-p", PROMPT)
        val process = ProcessBuilder(command).start()
        val json = process.inputStream.bufferedReader().readText()
        return 1 / Regex(""""decode_tps":\s*([0-9.]+)""").find(json)!!.groupValues[1].toDouble()
    }

    /** Seconds a token, of several turns. */
    private class Turns(private val all: List<Double>) {
        val best get() = all.min()

        override fun toString(): String =
            "%.0f us a token at best, %.0f in the middle".format(best * 1e6, all.sorted()[all.size / 2] * 1e6)
    }

    /** Turn by turn, so that both meet the same machine. */
    private suspend fun compare(engine: Engine, model: File, tokens: Int, turns: Int): Pair<Turns, Turns> {
        // Until the border is compiled.
        repeat(5) { kotlin(engine, tokens) }
        val both = List(turns) { kotlin(engine, tokens) to rust(model, tokens) }.unzip()
        val (kotlin, rust) = Turns(both.first) to Turns(both.second)
        println("${model.name}: $kotlin in Kotlin; $rust in Rust")
        return kotlin to rust
    }

    @Test
    fun `the border alone`() = running {
        val (kotlin, rust) = compare(tiny(), tinyModel, tokens = 100, turns = 24)
        assertTrue(kotlin.best - rust.best <= 50e-6)
    }

    @Test
    fun `the default model`() = running {
        val (kotlin, rust) = compare(real(), defaultModel, tokens = 16, turns = 5)
        assertTrue(kotlin.best <= rust.best * 1.03)
    }
}
