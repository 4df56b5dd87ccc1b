import Foundation
import Testing

@testable import Epiphyte

/// Version 1 of an adapter of the tiny model, which the key below published.
let tinyVersion = repository("tests/golden/delta/tiny.version")
let publisher = "ed25519:ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"

func accept(_ canary: Canary? = nil) throws -> AcceptOptions {
    AcceptOptions(adapter: "replies", trusted: [try .parse(publisher)], canary: canary)
}

/// A key store that is another's, or locked.
private struct Store: Signer {
    struct Locked: Error {}

    let key: SigningKey
    var named: SigningKey?
    var locked = false

    var publicKey: PublicKey { (named ?? key).publicKey }

    func sign(_ message: Data) throws -> Data {
        if locked { throw Locked() }
        return try key.sign(message)
    }
}

/// The phone's part of a round: a version is accepted and trained on, a signed delta leaves.
@Suite struct FederatedTests {
    private let examples = (0..<5).map { Example.pair(prompt: "the sea is \($0)", completion: " and the moon is blue") }

    /// Two steps from the version, of the factor that its round asks for.
    private func trained(_ folder: URL) async throws -> Trainer {
        let start = folder.appendingPathComponent("version")
        let applied = try await tiny().applyVersion(tinyVersion, to: start, options: accept())
        var options = TrainOptions(
            folder: folder.appendingPathComponent("run").path, data: .examples(examples), duration: .steps(2), seqLen: 64)
        options.`init` = start.path
        options.freeze = applied.freeze
        let trainer = try await tiny().trainer(options)
        try await trainer.run()
        return trainer
    }

    @Test func aVersionIsAcceptedTrainedOnAndADeltaSigned() async throws {
        try await withFolder { folder in
            let start = folder.appendingPathComponent("applied")
            let applied = try await tiny().applyVersion(tinyVersion, to: start, options: accept())
            #expect((applied.version, applied.round, applied.clients) == (1, 1, 0))
            #expect(applied.freeze == .a && applied.clipNorm == 1)
            let trainer = try await trained(folder)
            let residual = folder.appendingPathComponent("residual")
            for kind in [KeyKind.ed25519, .p256] {
                let store = Store(key: try SigningKey(generating: kind))
                let options = DeltaOptions(residual: residual.path)
                let delta = try await trainer.delta(since: tinyVersion, signer: store, options: options)
                #expect(!delta.bytes.isEmpty && delta.norm > 0 && delta.name.hasPrefix("epiphyte.delta"))
                #expect(!FileManager.default.fileExists(atPath: residual.path))
                try await delta.uploaded()
                try FileManager.default.removeItem(at: residual)
            }
        }
    }

    @Test func aCanaryDecides() async throws {
        try await withFolder { folder in
            let start = folder.appendingPathComponent("version")
            let refused = await cause {
                let strict = try accept(Canary(examples: .examples(examples), maxLoss: 1e-3))
                _ = try await tiny().applyVersion(tinyVersion, to: start, options: strict)
            }
            #expect(refused == "invalidAdapter")
            #expect(!FileManager.default.fileExists(atPath: start.path))
            let options = try accept(Canary(examples: .examples(examples)))
            _ = try await tiny().applyVersion(tinyVersion, to: start, options: options)
            #expect(FileManager.default.fileExists(atPath: start.path))
        }
    }

    @Test func whatASignerThrowsIsAnError() async throws {
        try await withFolder { folder in
            let trainer = try await trained(folder)
            let key = try SigningKey(generating: .ed25519)
            let locked = Store(key: key, locked: true)
            let thrown = await cause { _ = try await trainer.delta(since: tinyVersion, signer: locked) }
            #expect(thrown == "callback")
            let lying = Store(key: key, named: try SigningKey(generating: .ed25519))
            let refused = await cause { _ = try await trainer.delta(since: tinyVersion, signer: lying) }
            #expect(refused == "invalidDelta")
        }
    }

    @Test func keysAreKeptAndOthersRefused() async throws {
        let key = try SigningKey(generating: .p256)
        #expect(try SigningKey(pem: key.pem).publicKey == key.publicKey)
        let refused = await cause { _ = try PublicKey.parse("ed25519:00") }
        #expect(refused == "invalidDelta")
    }
}
