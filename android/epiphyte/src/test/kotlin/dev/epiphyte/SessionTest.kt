package dev.epiphyte

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.delay

class SessionTest {
    @Test
    fun `holds what was pushed`() = running {
        val session = prompted()
        val ids = session.tokens()
        assertEquals(ids.size, session.tokenCount)
        val other = tiny().session()
        other.pushTokens(ids)
        assertEquals(ids, other.tokens())
        assertThrown<EpiphyteException.InvalidArgument> { other.pushTokens(listOf(-1)) }
        assertThrown<EpiphyteException.InvalidArgument> { other.pushTokens(listOf(Int.MAX_VALUE)) }
    }

    @Test
    fun `truncate forgets`() = running {
        val session = prompted()
        val whole = session.answer(4)
        session.truncate(session.tokenCount - 4)
        assertEquals(whole, session.answer(4))
        val count = session.tokenCount
        session.truncate(1_000_000)
        assertEquals(count, session.tokenCount)
        session.truncate(0)
        assertEquals(0, session.tokenCount)
        assertThrown<EpiphyteException.InvalidArgument> { session.truncate(-1) }
    }

    @Test
    fun `a fork goes on alone`() = running {
        val session = prompted()
        val fork = session.fork()
        val answer = session.answer(8)
        assertEquals(session.tokenCount - 8, fork.tokenCount)
        assertEquals(answer, fork.answer(8))
        session.close()
        assertTrue(fork.answer(2).isNotEmpty())
    }

    @Test
    fun `a saved session goes on where it was`() = running {
        withFolder { folder ->
            val file = File(folder, "session")
            val session = prompted()
            session.answer(4)
            session.save(file)
            val restored = tiny().restore(file)
            assertEquals(session.tokens(), restored.tokens())
            assertEquals(session.answer(4), restored.answer(4))
        }
    }

    @Test
    fun `a saved session needs its file, its base and its adapters`() = running {
        withFolder { folder ->
            val file = File(folder, "session")
            assertThrown<EpiphyteException.Io> { tiny().restore(file) }
            assertThrown<EpiphyteException.Io> { prompted().save(File(folder, "no/such/folder/session")) }
            Engine.open(tinyModel).use { engine ->
                engine.loadAdapter("plain", peft("plain"))
                val session = engine.session().apply { setAdapters("plain") }
                session.pushText(PROMPT)
                session.save(file)
            }
            assertEquals("plain", assertThrown<EpiphyteException.AdapterNotLoaded> { tiny().restore(file) }.id)
            assertThrown<EpiphyteException.BaseMismatch> { real().restore(file) }
            file.writeBytes(file.readBytes().copyOf(100))
            assertThrown<EpiphyteException.InvalidFile> { tiny().restore(file) }
        }
    }

    @Test
    fun `a conversation is not computed again`() = running {
        val session = real().session()
        val question = Message.user("Name a colour.")
        session.setMessages(question)
        val answer = session.generate(GenerateOptions(maxTokens = 12)).text()
        val before = session.stats!!.promptTokens
        session.setMessages(question, Message.assistant(answer), Message.user("And another one."))
        session.generate(GenerateOptions(maxTokens = 2)).text()
        assertTrue(session.stats!!.cachedTokens >= before)
    }

    @Test
    fun `a conversation that the template refuses is an error that quotes nothing`() = running {
        val session = real().session()
        val secret = Message("user", "my secret", "{\"broken")
        val error = assertThrown<EpiphyteException.InvalidArgument> { session.setMessages(secret) }
        assertTrue("secret" !in error.message && "broken" !in error.message)
        assertEquals("extra_json", error.name)
    }

    @Test
    fun `a session keeps its engine`() = running {
        val session = Engine.open(tinyModel, EngineOptions(context = 64)).prompted()
        repeat(5) {
            System.gc()
            delay(20)
        }
        assertTrue(session.answer(2).isNotEmpty())
    }

    @Test
    fun `an empty text is no text`() = running {
        val session = tiny().session()
        session.pushText("")
        assertEquals(0, session.tokenCount)
        assertThrown<EpiphyteException.InvalidArgument> { session.answer(1) }
    }

    @Test
    fun `calls from many threads wait for each other`() = running {
        val session = tiny().session()
        List(50) { kotlin.concurrent.thread { kotlinx.coroutines.runBlocking { session.pushText("a b") } } }.forEach { it.join() }
        val once = tiny().session().apply { pushText("a b") }.tokenCount
        assertTrue(session.tokenCount >= 50 * (once - 1))
    }
}
