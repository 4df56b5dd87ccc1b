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

    /** The best of [rounds], each in turn, so that both have met the same machine. */
    private suspend fun compare(engine: Engine, model: File, tokens: Int, rounds: Int): Pair<Double, Double> {
        kotlin(engine, tokens)
        val both = List(rounds) { kotlin(engine, tokens) to rust(model, tokens) }
        return both.minOf { it.first } to both.minOf { it.second }
    }

    @Test
    fun `the border alone`() = running {
        val (kotlin, rust) = compare(tiny(), tinyModel, 200, 24)
        println("tiny model: %.0f us a token in Kotlin, %.0f in Rust".format(kotlin * 1e6, rust * 1e6))
        assertTrue(kotlin - rust <= 50e-6)
    }

    @Test
    fun `the default model`() = running {
        val (kotlin, rust) = compare(real(), defaultModel, 32, 6)
        println("default model: %.2f tokens/s in Kotlin, %.2f in Rust".format(1 / kotlin, 1 / rust))
        assertTrue(kotlin <= rust * 1.03)
    }
}
