package dev.epiphyte

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** Causes that no other test meets. */
class ErrorsTest {
    /** The tiny model with the first [old] in its file become [new], of as many characters. */
    private fun changed(folder: File, old: String, new: String): File {
        val text = tinyModel.readBytes().toString(Charsets.ISO_8859_1)
        check(old in text && old.length == new.length)
        return File(folder, "changed.gguf").apply { writeText(text.replaceFirst(old, new), Charsets.ISO_8859_1) }
    }

    @Test
    fun `a model of another family is not supported`() = running {
        withFolder { folder ->
            val model = changed(folder, "general.architecture\u0008\u0000\u0000\u0000\u0005\u0000\u0000\u0000\u0000\u0000\u0000\u0000llama", "general.architecture\u0008\u0000\u0000\u0000\u0005\u0000\u0000\u0000\u0000\u0000\u0000\u0000mambo")
            assertContains(assertThrown<EpiphyteException.Unsupported> { Engine.open(model) }.message, "mambo")
        }
    }

    @Test
    fun `a key that is missing is named`() = running {
        withFolder { folder ->
            val model = changed(folder, "llama.block_count", "llama.block_count".reversed())
            assertEquals("llama.block_count", assertThrown<EpiphyteException.InvalidMetadata> { Engine.open(model) }.key)
        }
    }

    @Test
    fun `a tensor that is missing is named`() = running {
        withFolder { folder ->
            val model = changed(folder, "blk.0.attn_q.weight", "blk.0.attn_X.weight")
            val error = thrown { Engine.open(model) }
            assertTrue(error is EpiphyteException.MissingTensor || error is EpiphyteException.InvalidTensor, "$error")
        }
    }

    @Test
    fun `a chat template may refuse a conversation`() = running {
        val options = EngineOptions(context = 64, chatTemplate = "{{ raise_exception('no such role') }}")
        Engine.open(tinyModel, options).use { engine ->
            val session = engine.session()
            assertThrown<EpiphyteException.ChatTemplate> { session.setMessages(Message.user("my secret")) }
            session.pushText("still usable")
        }
    }

    @Test
    fun `a session needs the adapter that it was saved with`() = running {
        withFolder { folder ->
            Engine.open(tinyModel).use { engine ->
                engine.loadAdapter("mine", peft("plain"))
                val file = File(folder, "session")
                engine.session().use { session ->
                    session.setAdapters("mine")
                    session.pushText(PROMPT)
                    session.save(file)
                }
                engine.loadAdapter("mine", peft("attention"))
                assertEquals("mine", assertThrown<EpiphyteException.AdapterMismatch> { engine.restore(file) }.id)
            }
        }
    }

    @Test
    fun `there is room for so many sets of adapters`() = running {
        Engine.open(tinyModel, EngineOptions(context = 64)).use { engine ->
            engine.loadAdapter("plain", peft("plain"))
            val error = assertThrown<EpiphyteException.AdapterSets> {
                for (set in 1..100_000) {
                    val session = engine.session()
                    session.setAdapters(listOf(AdapterWeight("plain", set / 1000f)))
                }
            }
            assertTrue(error.most > 1)
        }
    }

    @Test
    fun `a rate that breaks a run is said`() = running {
        withFolder { folder ->
            assertThrown<EpiphyteException.Training> {
                tiny().trainer(lesson(folder, 50).copy(learningRate = 1e30, maxGradNorm = 0.0)).run()
            }
        }
    }

    @Test
    fun `a context beyond all memory is refused`() = running {
        val error = thrown { Engine.open(tinyModel, EngineOptions(context = Int.MAX_VALUE)) }
        println("context of ${Int.MAX_VALUE}: $error")
    }
}
