package dev.epiphyte

import java.math.BigInteger
import java.security.KeyPair
import java.security.Signature
import java.security.interfaces.ECPublicKey

/** Signs deltas with a key that the library never sees. */
public interface Signer {
    /** The key that signatures are checked with. */
    public val publicKey: PublicKey

    /**
     * The signature of [message]: 64 bytes for Ed25519; for P-256 that of its SHA-256, in DER, as
     * `SHA256withECDSA` makes it.
     */
    public fun sign(message: ByteArray): ByteArray

    public companion object {
        /**
         * Signs with a key pair on P-256, also one whose private half never leaves Android's Keystore.
         * Throws [EpiphyteException.InvalidArgument] for another kind of key.
         */
        public fun of(pair: KeyPair): Signer {
            val public = pair.public as? ECPublicKey
            if (public == null || public.params.order.bitLength() != P256_BITS) {
                val hint = "make one with KeyPairGenerator \"EC\" on secp256r1"
                throw EpiphyteException.InvalidArgument("pair: no key on P-256; $hint", hint, "pair")
            }
            return JavaSigner(pair, PublicKey(KeyKind.P256, public.point()))
        }
    }
}

/** A signer as the library calls it. */
internal fun Listening.signing(signer: Signer): SigningCallback = object : SigningCallback {
    override fun publicKey(): PublicKey = hear { signer.publicKey }
    override fun sign(message: ByteArray): ByteArray = hear { signer.sign(message) }
}

private const val P256_BITS = 256

private class JavaSigner(private val pair: KeyPair, override val publicKey: PublicKey) : Signer {
    override fun sign(message: ByteArray): ByteArray = Signature.getInstance("SHA256withECDSA").run {
        initSign(pair.private)
        update(message)
        sign()
    }
}

/** Uncompressed (X9.63). */
private fun ECPublicKey.point(): ByteArray =
    byteArrayOf(4) + w.affineX.coordinate() + w.affineY.coordinate()

/** Big-endian, without a sign, to the width of the curve. */
private fun BigInteger.coordinate(): ByteArray {
    val width = P256_BITS / Byte.SIZE_BITS
    val bytes = toByteArray().takeLast(width)
    return ByteArray(width - bytes.size) + bytes
}

/** A key in the app's own memory, for tests and for devices without a key store. */
public class SigningKey private constructor(private val core: CoreSigningKey) : Signer {
    override val publicKey: PublicKey get() = calling { core.publicKey() }

    override fun sign(message: ByteArray): ByteArray = calling { core.sign(message) }

    /** To keep it (PEM, PKCS#8), as safe as what it signs for. */
    public fun toPem(): String = calling { core.toPem() }

    public companion object {
        /** A new one, from the system's randomness. */
        public fun generate(kind: KeyKind): SigningKey = SigningKey(calling { CoreSigningKey.generate(kind) })

        /** One that was kept (PEM, PKCS#8). */
        public fun fromPem(text: String): SigningKey = SigningKey(calling { CoreSigningKey.fromPem(text) })
    }
}

/** A public key as `epiphyte delta key` prints it (`ed25519:…`, `p256:…`), or a PEM. */
public fun PublicKey.Companion.parse(text: String): PublicKey = calling { parsePublicKey(text) }

/** What training changed, signed and ready to be uploaded. */
public class Delta internal constructor(private val core: CoreDelta) {
    /** The file. */
    public val bytes: ByteArray by lazy { core.bytes() }

    /** What its manifest and numbers are known by. */
    public val name: String get() = core.name()

    /** Of its numbers. */
    public val norm: Double get() = core.norm()

    /** It was shrunk to the round's norm. */
    public val wasClipped: Boolean get() = core.wasClipped()

    /** To be called once the upload is done: keeps what quantising lost for the next round. */
    public suspend fun uploaded(): Unit = calling { core.uploaded() }
}
