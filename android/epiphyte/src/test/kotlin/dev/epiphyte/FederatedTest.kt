package dev.epiphyte

import java.io.File
import java.security.KeyPairGenerator
import java.security.spec.ECGenParameterSpec
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertTrue

/** The phone's part of a round: a version is accepted and trained on, a signed delta leaves. */
class FederatedTest {
    private val generator = KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp256r1")) }

    /** Two steps from the version, of the factor that its round asks for. */
    private suspend fun trained(folder: File): Trainer {
        val start = File(folder, "version")
        val applied = tiny().applyVersion(tinyVersion, start, accept)
        val options = lesson(File(folder, "run"), steps = 2).copy(init = start.path, freeze = applied.freeze, rank = null)
        return tiny().trainer(options).apply { run() }
    }

    @Test
    fun `a version is accepted, trained on, and a delta signed by a key store's key`() = running {
        withFolder { folder ->
            val start = File(folder, "applied")
            val applied = tiny().applyVersion(tinyVersion, start, accept)
            assertEquals(listOf(1L, 1L, 0L), listOf(applied.version, applied.round, applied.clients))
            assertEquals(Factor.A to 1.0, applied.freeze to applied.clipNorm)
            tiny().loadAdapter("averaged", File(applied.folder))
            tiny().unloadAdapter("averaged")

            val trainer = trained(folder)
            val residual = File(folder, "residual")
            // Coordinates that begin with zeros are one in 128: several keys.
            repeat(24) {
                val options = DeltaOptions(residual = residual.path)
                val delta = trainer.delta(tinyVersion, Signer.of(generator.generateKeyPair()), options)
                assertTrue(delta.bytes.isNotEmpty() && delta.norm > 0.0 && delta.name.startsWith("epiphyte.delta"))
                assertFalse(residual.exists())
                if (it == 23) delta.uploaded()
            }
            assertTrue(residual.length() > 0)
        }
    }

    @Test
    fun `a canary decides`() = running {
        withFolder { folder ->
            val start = File(folder, "version")
            val canary = Canary(TrainData.Examples(lessons), maxLoss = 1e-3)
            val refused = assertThrown<EpiphyteException.InvalidAdapter> {
                tiny().applyVersion(tinyVersion, start, accept.copy(canary = canary))
            }
            assertEquals("canary", refused.what)
            assertFalse(start.exists())
            tiny().applyVersion(tinyVersion, start, accept.copy(canary = canary.copy(maxLoss = null)))
            assertTrue(start.isDirectory)
        }
    }

    @Test
    fun `what a signer throws is the cause`() = running {
        withFolder { folder ->
            val trainer = trained(folder)
            val key = SigningKey.generate(KeyKind.ED25519)
            val locked = object : Signer by key {
                override fun sign(message: ByteArray): ByteArray = error("the store is locked")
            }
            val callback = assertThrown<EpiphyteException.Callback> { trainer.delta(tinyVersion, locked) }
            assertEquals("the store is locked", assertIs<IllegalStateException>(callback.cause).message)
            val other = SigningKey.generate(KeyKind.ED25519)
            val lying = object : Signer by key {
                override val publicKey get() = other.publicKey
            }
            assertEquals("signature", assertThrown<EpiphyteException.InvalidDelta> { trainer.delta(tinyVersion, lying) }.what)
            assertTrue(trainer.delta(tinyVersion, key).norm > 0.0)
        }
    }

    @Test
    fun `keys are kept, and others refused`() = running {
        val key = SigningKey.generate(KeyKind.P256)
        assertContentEquals(key.publicKey.bytes, SigningKey.fromPem(key.toPem()).publicKey.bytes)
        val rsa = KeyPairGenerator.getInstance("RSA").generateKeyPair()
        assertEquals("pair", assertThrown<EpiphyteException.InvalidArgument> { Signer.of(rsa) }.name)
        assertThrown<EpiphyteException.InvalidDelta> { PublicKey.parse("ed25519:00") }
    }
}
