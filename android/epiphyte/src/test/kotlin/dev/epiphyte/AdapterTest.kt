package dev.epiphyte

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.toList
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.EnumSource

class AdapterTest {
    /** An engine of its own with two adapters. */
    private suspend fun engine() = Engine.open(tinyModel, EngineOptions(context = 256)).apply {
        loadAdapter("plain", peft("plain"))
        loadAdapter("attention", peft("attention"))
    }

    private suspend fun Engine.answer(vararg adapters: AdapterWeight): String = session().run {
        setAdapters(adapters.asList())
        pushText(PROMPT)
        answer(12)
    }

    @Test
    fun `the report says what was loaded`() = running {
        engine().use { engine ->
            val report = engine.adapterReport("plain")!!
            assertEquals(AdapterFormat.PEFT, report.format)
            assertTrue(report.modules.isNotEmpty() && report.modules.all { it.rank == 4 })
            assertEquals(listOf("attention", "plain"), engine.adapters().map { it.id }.sorted())
            assertNull(engine.adapterReport("nobody"))
        }
    }

    @Test
    fun `an adapter from memory is the same`() = running {
        engine().use { engine ->
            val config = File(peft("plain"), "adapter_config.json").readText()
            val tensors = File(peft("plain"), "adapter_model.safetensors").readBytes()
            engine.loadAdapter("bytes", AdapterSource.Bytes(config, tensors))
            assertEquals(engine.answer(AdapterWeight("plain")), engine.answer(AdapterWeight("bytes")))
        }
    }

    @Test
    fun `each adapter answers its own way`() = running {
        engine().use { engine ->
            val base = engine.answer()
            val plain = engine.answer(AdapterWeight("plain"))
            assertNotEquals(base, plain)
            assertEquals(base, engine.answer(AdapterWeight("plain", 0f)))
            assertNotEquals(plain, engine.answer(AdapterWeight("attention")))
        }
    }

    @Test
    fun `sets have weights`() = running {
        engine().use { engine ->
            val session = engine.session()
            val set = listOf(AdapterWeight("plain", 0.5f), AdapterWeight("attention", 2f))
            session.setAdapters(set)
            assertEquals(set.toSet(), session.adapters().toSet())
            session.setAdapters()
            assertTrue(session.adapters().isEmpty())
        }
    }

    @Test
    fun `an adapter is there for a while`() = running {
        engine().use { engine ->
            val session = engine.session()
            session.setAdapters("attention")
            val inside = session.withAdapter("plain", weight = 0.5f) {
                it.adapters().map(AdapterWeight::id).toSet()
            }
            assertEquals(setOf("plain", "attention"), inside)
            assertEquals(listOf(AdapterWeight("attention")), session.adapters())
            assertFailsWith<IllegalStateException> { session.withAdapter("plain") { error("mine") } }
            assertEquals(listOf(AdapterWeight("attention")), session.adapters())
        }
    }

    @ParameterizedTest
    @EnumSource
    fun `adapters swap in the middle of an answer`(history: KvPolicy) = running {
        engine().use { engine ->
            val base = engine.prompted().generate(greedy(24)).toList().map { it.id }
            val session = engine.prompted()
            val ids = mutableListOf<Int>()
            session.generate(greedy(24)).collect { token ->
                ids += token.id
                if (ids.size == 6) session.setAdapters(listOf(AdapterWeight("plain")), history)
            }
            assertEquals(24, ids.size)
            assertEquals(base.take(6), ids.take(6))
            assertNotEquals(base, ids.toList())
            assertEquals(listOf(AdapterWeight("plain")), session.adapters())
        }
    }

    @Test
    fun `features of the default model swap`() = running {
        val engine = real()
        engine.loadAdapter("pirate", demo("pirate"))
        engine.loadAdapter("json", demo("json"))
        val session = engine.session()
        val answers = listOf("pirate", "json").map { feature ->
            session.setAdapters(feature)
            session.setMessages(Message.user("What is an epiphyte?"))
            session.generate(GenerateOptions(maxTokens = 12)).text()
        }
        assertContains(answers[0], "Arr")
        assertContains(answers[1], "{")
    }

    @Test
    fun `an id that is not loaded is refused`() = running {
        engine().use { engine ->
            val session = engine.session()
            assertContains(thrown { session.setAdapters("nobody") }.message, "nobody")
            assertTrue(session.adapters().isEmpty())
            engine.unloadAdapter("nobody")
            thrown { engine.probeAdapter("nobody", PROMPT) }
        }
    }

    @Test
    fun `an adapter in use is not unloaded`() = running {
        engine().use { engine ->
            val session = engine.session().apply { setAdapters("plain") }
            assertEquals("plain", assertThrown<EpiphyteException.AdapterInUse> { engine.unloadAdapter("plain") }.id)
            session.close()
            engine.unloadAdapter("plain")
            assertEquals(listOf("attention"), engine.adapters().map { it.id })
        }
    }

    @Test
    fun `a probe says whether an adapter does anything`() = running {
        engine().use { assertTrue(it.probeAdapter("plain", PROMPT).maxAbsDifference > 0) }
    }

    @Test
    fun `an adapter of another base is refused`() = running {
        Engine.open(tinyModel).use { engine ->
            thrown { engine.loadAdapter("pirate", demo("pirate")) }
            assertTrue(engine.adapters().isEmpty())
        }
    }

    @Test
    fun `missing and damaged files are refused`() = running {
        val engine = tiny()
        assertThrown<EpiphyteException.Io> { engine.loadAdapter("a", File("/nowhere")) }
        thrown { engine.loadAdapter("a", AdapterSource.Gguf(ByteArray(0))) }
        thrown { engine.loadAdapter("a", AdapterSource.Bytes("{", byteArrayOf(1, 2))) }
        assertTrue(engine.adapters().isEmpty())
    }

    @Test
    fun `an adapter may be larger than the budget, which is then an error`() = running {
        Engine.open(tinyModel, EngineOptions(adapterBudgetBytes = 16)).use { engine ->
            val error = assertThrown<EpiphyteException.AdapterBudget> { engine.loadAdapter("plain", peft("plain")) }
            assertEquals("plain", error.id)
            assertTrue(error.neededBytes > error.budgetBytes)
        }
    }

    @Test
    fun `the file may go while the adapter is used`() = running {
        withFolder { folder ->
            Engine.open(tinyModel).use { engine ->
                val copy = File(folder, "plain")
                peft("plain").copyRecursively(copy)
                engine.loadAdapter("plain", copy)
                val before = engine.answer(AdapterWeight("plain"))
                copy.deleteRecursively()
                assertEquals(before, engine.answer(AdapterWeight("plain")))
            }
        }
    }
}
