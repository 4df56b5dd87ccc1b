package dev.epiphyte

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch

class GenerateTest {
    @Test
    fun `the default model streams`() = running {
        val session = real().session()
        session.setMessages(Message.user("What is the capital of France?"))
        val tokens = session.generate(GenerateOptions(maxTokens = 24)).toList()
        assertTrue("Paris" in tokens.joinToString("") { it.text })
        val stats = session.stats!!
        assertEquals(tokens.size, stats.generatedTokens)
        assertTrue(stats.decodeTokensPerSecond!! > 0)
    }

    @Test
    fun `the flow ends at maxTokens`() = running {
        val session = prompted()
        assertNull(session.stats)
        assertEquals(5, session.generate(greedy(5)).toList().size)
        assertEquals(FinishReason.MAX_TOKENS, session.stats?.finishReason)
        assertEquals(5, session.stats?.generatedTokens)
    }

    @Test
    fun `nothing begins before it is collected, and each collection is an answer of its own`() = running {
        val session = prompted()
        val before = session.tokenCount
        val flow = session.generate(greedy(4))
        delay(50)
        assertEquals(before, session.tokenCount)
        flow.toList()
        flow.toList()
        assertEquals(before + 8, session.tokenCount)
    }

    @Test
    fun `an answer is what its format asks for`() = running {
        val session = prompted()
        val digits = ResponseFormat.Regex("[0-9]{7}")
        val text = session.generate(GenerateOptions(maxTokens = 40, responseFormat = digits)).text()
        assertTrue(Regex("[0-9]{7}").matches(text), text)
        assertEquals(FinishReason.END_OF_GENERATION, session.stats?.finishReason)
        val none = ResponseFormat.JsonSchema("{\"type\": 3}")
        assertThrown<EpiphyteException.InvalidArgument> {
            session.generate(GenerateOptions(responseFormat = none)).toList()
        }
    }

    @Test
    fun `the session holds what was collected`() = running {
        val session = prompted()
        val before = session.tokenCount
        val taken = session.generate(greedy(100)).take(3).toList()
        assertEquals(before + 3, session.tokenCount)
        assertEquals(taken.map { it.id }, session.tokens().drop(before))
        assertEquals(FinishReason.CANCELLED, session.stats?.finishReason)
    }

    @Test
    fun `no token comes after a cancellation in the middle`() = running {
        val session = real().session().apply { setMessages(Message.user("Tell a long story.")) }
        val before = session.tokenCount
        var collected = 0
        val answer = launch { session.generate(greedy(200)).collect { collected++ } }
        until { collected >= 3 }
        answer.cancelAndJoin()
        val then = collected
        assertEquals(before + then, session.tokenCount)
        delay(200)
        assertEquals(then, collected)
        assertEquals(before + then, session.tokens().size)
    }

    @Test
    fun `a cancellation before the first token is not lost`() = running {
        val session = real().session().apply { pushText("word ".repeat(300)) }
        val before = session.tokenCount
        var collected = 0
        val answer = launch(start = CoroutineStart.UNDISPATCHED) {
            session.generate(greedy(200)).collect { collected++ }
        }
        answer.cancelAndJoin()
        assertEquals(0, collected)
        assertEquals(before, session.tokenCount)
        session.pushText("usable at once")
    }

    @Test
    fun `a coroutine that was cancelled before it began begins nothing`() = running {
        val session = prompted()
        val answer = launch(start = CoroutineStart.LAZY) { session.answer(8) }
        answer.cancelAndJoin()
        assertNull(session.stats)
    }

    @Test
    fun `an exception of the collector ends the answer and arrives`() = running {
        val session = prompted()
        val error = assertFailsWith<IllegalStateException> {
            session.generate(greedy(100)).onEach { error("mine") }.toList()
        }
        assertEquals("mine", error.message)
        session.pushText("usable at once")
    }

    @Test
    fun `a session is busy while its answer runs`() = running {
        val session = prompted()
        session.generate(greedy(8)).take(2).collect {
            assertThrown<EpiphyteException.Busy> { session.pushText("more") }
            assertThrown<EpiphyteException.Busy> { session.generate(greedy(1)).first() }
        }
        session.pushText("more")
    }

    @Test
    fun `closing the session ends its answer`() = running {
        val session = prompted()
        assertThrown<EpiphyteException.Closed> {
            session.generate(greedy(200)).collect { session.close() }
        }
        session.close()
        assertThrown<EpiphyteException.Closed> { session.pushText("more") }
        assertThrown<EpiphyteException.Closed> { session.answer(1) }
    }

    @Test
    fun `two sessions answer at once as each alone`() = running {
        val prompts = listOf("the sea", "a whale")
        val together = prompts.map { async { prompted(it).answer(16) } }.map { it.await() }
        assertEquals(prompts.map { prompted(it).answer(16) }, together)
    }

    @Test
    fun `two sessions of the default model answer at once`() = running {
        val answers = List(2) {
            async { real().session().apply { setMessages(Message.user("Name a colour.")) }.answer(8) }
        }
        assertEquals(answers[0].await(), answers[1].await())
    }

    @Test
    fun `the seed decides the answer`() = running {
        suspend fun answer(seed: Long) =
            prompted().generate(greedy(12).copy(sampling = Sampling(temperature = 1.5f, seed = seed))).text()
        assertEquals(answer(1), answer(1))
        assertNotEquals(answer(1), answer(2))
    }

    @Test
    fun `a stop text ends the answer and is no part of it`() = running {
        val whole = prompted().answer(8)
        val stop = whole.drop(whole.length / 2).take(2)
        val session = prompted()
        assertTrue(stop !in session.generate(greedy(8).copy(stop = listOf(stop))).text())
        assertEquals(FinishReason.STOP, session.stats?.finishReason)
    }

    @Test
    fun `a full context is an end and not an error`() = running {
        Engine.open(tinyModel, EngineOptions(context = 32)).use { engine ->
            val session = engine.prompted()
            session.answer(100)
            assertEquals(FinishReason.CONTEXT_FULL, session.stats?.finishReason)
            val error = assertThrown<EpiphyteException.ContextFull> { session.pushText("more than there is room for") }
            assertEquals(32, error.capacity)
        }
    }

    @Test
    fun `wrong options are refused and the session stays usable`() = running {
        val wrong = listOf(
            GenerateOptions(maxTokens = -1),
            GenerateOptions(sampling = Sampling(temperature = -1f)),
            GenerateOptions(sampling = Sampling(temperature = Float.NaN)),
            GenerateOptions(sampling = Sampling(topK = -1)),
            GenerateOptions(sampling = Sampling(temperature = 1f, topP = 2f)),
            GenerateOptions(stopTokens = listOf(-1)),
        )
        val session = prompted()
        for (options in wrong) {
            assertThrown<EpiphyteException.InvalidArgument> { session.generate(options).toList() }
        }
        session.pushText("still usable")
    }
}
