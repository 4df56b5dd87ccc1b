import EpiphyteCore
import Foundation

/// Signs deltas with a key that the library never sees.
public protocol Signer: Sendable {
    /// The key that signatures are checked with.
    var publicKey: PublicKey { get throws }

    /// The signature of a message: 64 bytes for Ed25519; for P-256 that of its SHA-256, in DER, as CryptoKit's
    /// `derRepresentation` has it.
    func sign(_ message: Data) throws -> Data
}

/// A signer as the library calls it.
final class Signing: SigningCallback {
    private let signer: any Signer

    init(_ signer: any Signer) { self.signer = signer }

    func publicKey() throws -> PublicKey { try signer.publicKey }
    func sign(message: Data) throws -> Data { try signer.sign(message) }
}

/// A key in the app's own memory, for tests and for devices without a key store.
public final class SigningKey: Signer {
    private let core: EpiphyteCore.SigningKey

    private init(_ core: EpiphyteCore.SigningKey) { self.core = core }

    /// A new one, from the system's randomness.
    public convenience init(generating kind: KeyKind) throws { self.init(try .generate(kind: kind)) }

    /// One that was kept (PEM, PKCS#8).
    public convenience init(pem: String) throws { self.init(try .fromPem(text: pem)) }

    /// To keep it (PEM, PKCS#8), as safe as what it signs for.
    public var pem: String { get throws { try core.toPem() } }

    public var publicKey: PublicKey { core.publicKey() }

    public func sign(_ message: Data) throws -> Data { try core.sign(message: message) }
}

extension PublicKey {
    /// A public key as `epiphyte delta key` prints it (`ed25519:…`, `p256:…`), or a PEM.
    public static func parse(_ text: String) throws -> PublicKey { try parsePublicKey(text: text) }
}

/// What training changed, signed and ready to be uploaded.
public final class Delta: Sendable {
    private let core: EpiphyteCore.Delta

    init(_ core: EpiphyteCore.Delta) { self.core = core }

    /// The file.
    public var bytes: Data { core.bytes() }

    /// What its manifest and numbers are known by.
    public var name: String { core.name() }

    /// Of its numbers.
    public var norm: Double { core.norm() }

    /// It was shrunk to the round's norm.
    public var wasClipped: Bool { core.wasClipped() }

    /// To be called once the upload is done: keeps what quantising lost for the next round.
    public func uploaded() async throws { try await core.uploaded() }
}
