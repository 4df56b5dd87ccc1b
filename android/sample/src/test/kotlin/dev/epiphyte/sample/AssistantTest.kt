package dev.epiphyte.sample

import dev.epiphyte.ModelSource
import dev.epiphyte.longTinyModel
import dev.epiphyte.peft
import dev.epiphyte.running
import dev.epiphyte.until
import dev.epiphyte.withFolder
import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch

class AssistantTest {
    private val bundled = mapOf("plain" to peft("plain"))

    @Test
    fun `asks, teaches and asks again`() = running {
        withFolder { folder ->
            val model = ModelSource.Path(longTinyModel(folder).path)
            val adapters = File(folder, "adapters")
            Assistant(model, bundled, adapters).use { assistant ->
                assistant.open()
                assertEquals(listOf("plain"), assistant.screen.value.features)
                assistant.ask("What is the sun?", "plain")
                assertTrue(assistant.screen.value.answer.isNotEmpty())
                assertTrue(assistant.screen.value.tokensPerSecond!! > 0)

                val teaching = launch { assistant.teach("mine", listOf(Lesson("What is our cat called?", "Pixel"))) }
                until { assistant.screen.value.losses.isNotEmpty() }
                teaching.cancelAndJoin()
                assertNull(assistant.screen.value.problem)
                assertEquals(listOf("plain"), assistant.screen.value.features)
            }
            // Begun and stopped: its folder is a feature from the next start on.
            Assistant(model, bundled, adapters).use { assistant ->
                assistant.open()
                assertEquals(listOf("mine", "plain"), assistant.screen.value.features)
            }
        }
    }

    @Test
    fun `says what is wrong`() = running {
        Assistant(ModelSource.Path("/nowhere/model.gguf"), bundled, File("/nowhere")).use { assistant ->
            assistant.open()
            assertContains(assistant.screen.value.problem!!, "/nowhere/model.gguf")
            assertTrue(!assistant.screen.value.ready)
        }
    }
}
