package dev.epiphyte

import java.io.File
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class EngineTest {
    @Test
    fun `opens with progress`() = running {
        val seen = mutableListOf<LoadProgress>()
        Engine.open(defaultModel, EngineOptions(context = 64)) { seen += it }.use { engine ->
            assertTrue(seen.any { it.phase == LoadPhase.WEIGHTS && it.done == it.total })
            assertTrue(engine.device.isNotEmpty() && engine.fingerprint.isNotEmpty())
            assertTrue(engine.deviceBytes > 50_000_000)
            assertTrue(engine.trains)
            assertEquals(64, engine.context)
        }
    }

    @Test
    fun `a cancelled open loads no further`() = running {
        val seen = CopyOnWriteArrayList<LoadProgress>()
        val opening = launch { Engine.open(tinyModel, EngineOptions(cacheDir = "")) { seen += it } }
        until { seen.isNotEmpty() }
        opening.cancelAndJoin()
        val then = seen.size
        delay(500)
        // One word may have been on its way.
        assertTrue(seen.size <= then + 1, "$then, ${seen.size}")
        assertTrue(seen.last().run { phase == LoadPhase.SELF_TEST && done < total }, "${seen.last()}")
    }

    @Test
    fun `a second start tests and compiles nothing`() = running {
        withFolder { folder ->
            val options = EngineOptions(context = 64, cacheDir = folder.path)
            val starts = List(2) {
                val engine = Engine.open(tinyModel, options)
                val work = engine.use {
                    it.prompted().answer(2)
                    it.counters
                }
                engine.closed()
                work
            }
            assertTrue(starts[0].testedKernels > 0 && starts[0].compiledKernels > 0)
            assertEquals(0, starts[1].testedKernels)
            assertEquals(0, starts[1].compiledKernels)
        }
    }

    @Test
    fun `memory is planned before it is taken`() = running {
        val model = ModelSource.Path(defaultModel.path)
        val plan = Engine.memoryPlan(model, MemoryPlanOptions(context = 512))
        assertEquals(plan.totalBytes, plan.classes.sumOf { it.bytes })
        val training = TrainOptions("/nowhere", TrainData.Examples(lessons))
        val beside = Engine.memoryPlan(model, MemoryPlanOptions(training = training))
        assertTrue(beside.training!!.trainableParameters > 0 && beside.training!!.seqLen > 0)
        val tooLittle = MemoryPlanOptions(context = 512, memoryBudgetBytes = 1_000_000)
        assertThrown<EpiphyteException.OverBudget> { Engine.memoryPlan(model, tooLittle) }
    }

    @Test
    fun `a model is read where it lies in another file`() = running {
        withFolder { folder ->
            val archive = File(folder, "archive").apply { writeBytes(ByteArray(4096) + tinyModel.readBytes() + ByteArray(10)) }
            val part = ModelSource.Part(archive.path, 4096, tinyModel.length())
            Engine.open(part).use { assertEquals(tiny().fingerprint, it.fingerprint) }
            thrown { Engine.open(ModelSource.Part(archive.path, 4095, tinyModel.length())) }
            assertThrown<EpiphyteException.Io> { Engine.open(ModelSource.Descriptor(-1, 0, null)) }
        }
    }

    @Test
    fun `close twice is harmless, and calls are refused`() = running {
        val engine = Engine.open(tinyModel)
        val session = engine.session()
        engine.close()
        engine.close()
        engine.closed()
        assertThrown<EpiphyteException.Closed> { engine.session() }
        assertThrown<EpiphyteException.Closed> { engine.countTokens("a") }
        assertThrown<EpiphyteException.Closed> { engine.context }
        assertThrown<EpiphyteException.Closed> { engine.adapters() }
        assertThrown<EpiphyteException.Closed> { engine.loadAdapter("plain", peft("plain")) }
        assertThrown<EpiphyteException.Closed> { engine.trainer(lesson(File("/nowhere"))) }
        assertThrown<EpiphyteException.Closed> { session.pushText("a") }
    }

    @Test
    fun `close under load ends what runs`() = running {
        val engine = Engine.open(tinyModel, EngineOptions(context = 256))
        val answers = List(4) {
            val session = engine.prompted()
            async { thrown { while (true) session.answer(8) } }
        }
        delay(100)
        engine.close()
        answers.forEach { assertIs<EpiphyteException.Closed>(it.await()) }
        engine.closed()
    }

    @Test
    fun `cancelling does not wait for the model`() = running {
        val opening = launch { Engine.open(defaultModel) }
        delay(5)
        opening.cancel()
        opening.join()
        assertTrue(opening.isCancelled)
    }

    @Test
    fun `what a listener throws is the cause of the error`() = running {
        val error = assertThrown<EpiphyteException.Callback> {
            Engine.open(tinyModel) { error("mine") }
        }
        assertEquals("mine", error.cause?.message)
    }

    @Test
    fun `a listener may cancel`() = running {
        assertFailsWith<CancellationException> {
            Engine.open(tinyModel) { throw CancellationException("enough") }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = ["/nowhere/model.gguf", "/tmp", "/dev/null", "a\u0000b"])
    fun `what is no model is refused`(path: String) = running {
        val error = thrown { Engine.open(File(path)) }
        val refused = error is EpiphyteException.Io || error is EpiphyteException.InvalidFile ||
            error is EpiphyteException.InvalidArgument
        assertTrue(refused, "$error")
    }

    @Test
    fun `an empty path is refused by name`() = running {
        assertEquals("path", assertThrown<EpiphyteException.InvalidArgument> { Engine.open(File("")) }.name)
    }

    @Test
    fun `a model that is cut short is refused`() = running {
        withFolder { folder ->
            val cut = File(folder, "cut.gguf")
            cut.writeBytes(tinyModel.readBytes().copyOf(20_000))
            thrown { Engine.open(cut) }
        }
    }

    @Test
    fun `paths may hold anything`() = running {
        withFolder { folder ->
            val file = tinyModel.copyTo(File(folder, "größe 🐋 \u202e.gguf"))
            Engine.open(file).use { assertTrue(it.context > 0) }
        }
    }

    @Test
    fun `wrong options are refused by name`() = running {
        val wrong = mapOf(
            "context" to EngineOptions(context = -1),
            "adapter_budget_bytes" to EngineOptions(adapterBudgetBytes = -1),
        )
        for ((name, options) in wrong) {
            val error = assertThrown<EpiphyteException.InvalidArgument> { Engine.open(tinyModel, options) }
            assertEquals(name, error.name)
        }
        assertThrown<EpiphyteException.NoGpu> { Engine.open(tinyModel, EngineOptions(gpu = "no such device")) }
    }

    @Test
    fun `a text with half a character is refused`() = running {
        for (text in listOf("\ud800 alone", "alone \udc00")) {
            assertThrown<EpiphyteException.InvalidArgument> { tiny().countTokens(text) }
            assertThrown<EpiphyteException.InvalidArgument> { tiny().session().setMessages(Message.user(text)) }
        }
        assertTrue(tiny().countTokens("nul \u0000 and 🐋") > 0)
        assertEquals(tiny().countTokens(PROMPT), prompted().tokenCount)
    }

    @Test
    fun `a chat is rendered by the model's template`() = running {
        val messages = listOf(Message.system("Be brief."), Message.user("Hello"), Message.assistant("Hi."), Message.user("Bye"))
        val text = real().renderChat(messages)
        for (message in messages) assertContains(text, message.content)
        assertTrue(text.endsWith("assistant\n"))
        assertTrue(!real().renderChat(messages, PromptOptions(addGenerationPrompt = false)).endsWith("assistant\n"))
    }
}
