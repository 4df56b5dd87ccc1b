package dev.epiphyte.android

import dev.epiphyte.EpiphyteException
import dev.epiphyte.assertThrown
import dev.epiphyte.running
import java.io.FileNotFoundException
import kotlin.test.Test
import kotlin.test.assertContains

class AppTest {
    @Test
    fun `an asset that is compressed says how not to`() = running {
        val error = assertThrown<EpiphyteException.Io> {
            // What AssetManager.openFd does with one.
            withModelAsset("model.gguf", { throw FileNotFoundException("it is probably compressed") }) { }
        }
        assertContains(error.hint, "noCompress")
    }
}
