package dev.epiphyte

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList

class BatchTest {
    private val prompts = listOf("the sea", "a whale", "my ship")

    private suspend fun answers(engine: Engine, tokens: Int): List<String> {
        val sequences = prompts.map { BatchSequence(engine.prompted(it), greedy(tokens)) }
        val texts = List(3) { StringBuilder() }
        engine.batch(sequences).collect { texts[it.index].append(it.token.text) }
        return texts.map { it.toString() }
    }

    @Test
    fun `three answer as each alone`() = running {
        assertEquals(prompts.map { prompted(it).answer(8) }, answers(tiny(), 8))
    }

    @Test
    fun `three answers of the default model`() = running {
        assertEquals(prompts.map { real().prompted(it).answer(6) }, answers(real(), 6))
    }

    @Test
    fun `leaving it ends all, and each holds what was collected`() = running {
        val sessions = prompts.map { prompted(it) }
        val before = sessions.map { it.tokenCount }
        val taken = tiny().batch(sessions.map { BatchSequence(it, greedy(100)) }).take(7).toList()
        val counts = List(3) { index -> taken.count { it.index == index } }
        assertEquals(before.zip(counts) { a, b -> a + b }, sessions.map { it.tokenCount })
        sessions.forEach { it.pushText("more") }
    }

    @Test
    fun `the same session twice is refused`() = running {
        val session = prompted()
        assertThrown<EpiphyteException.Busy> { tiny().batch(List(2) { BatchSequence(session) }).toList() }
        session.pushText("still usable")
    }

    @Test
    fun `no sequence is an answer of none, or refused`() = running {
        val empty = runCatching { tiny().batch(emptyList()).toList() }
        assertEquals(true, empty.isFailure || empty.getOrThrow().isEmpty())
    }
}
