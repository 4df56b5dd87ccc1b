import Foundation
import Testing

@testable import Epiphyte

/// Every cause of an error: what an app does to meet it, or why none can here.
@Suite struct CausesTests {
    typealias Meet = @Sendable (URL) async throws -> Void

    /// Why a cause can't be brought about through this border on this machine.
    static let outOfReach = [
        "deviceLost": "no driver here loses its device; tests/engine/lifecycle.rs makes one",
        "gpu": "no driver here refuses anything; tests/selftest.rs makes one",
        "internal": "it would be a fault; bindings/src/held.rs makes one",
        "tokenizer": "what could be wrong with a GGUF's is an error of its metadata",
    ]

    static let zeros = String(repeating: "\u{0}", count: 7)

    static let causes: [String: Meet] = [
        "adapterBudget": { _ in
            try await open(EngineOptions(adapterBudgetBytes: 16)).loadAdapter("plain", from: peft("plain"))
        },
        "adapterInUse": { _ in
            let engine = try await open()
            try await engine.loadAdapter("plain", from: peft("plain"))
            let session = try engine.session()
            try await session.setAdapters(["plain"])
            try await engine.unloadAdapter("plain")
        },
        "adapterMismatch": { folder in
            try await restored(folder, adapter: "plain") { try await $0.loadAdapter("plain", from: peft("attention")) }
        },
        "adapterNotLoaded": { folder in
            try await restored(folder, adapter: "plain") { try await $0.unloadAdapter("plain") }
        },
        "adapterSets": { _ in
            let engine = try await open()
            try await engine.loadAdapter("plain", from: peft("plain"))
            var sessions = [Session]()
            for set in 1...100_000 {
                sessions.append(try engine.session())
                try await sessions.last!.setAdapters([AdapterWeight(id: "plain", weight: Float(set) / 1000)])
            }
        },
        "background": { _ in
            let engine = try await open()
            engine.background()
            let session = try engine.session()
            try await session.pushText(prompt)
            _ = try await session.generate(greedy(1)).text()
        },
        "baseMismatch": { folder in
            try await restored(folder) { try tamper($0, "epiphyte.base.1:", "epiphyte.base.1:0000") }
        },
        "busy": { _ in
            let session = try await prompted()
            let generation = try session.generate(greedy(2))
            try await session.pushText("more")
            generation.cancel()
        },
        "callback": { _ in _ = try await Engine.open(tinyModel) { _ in throw CancellationError() } },
        "cancelled": { _ in
            // Below the task, whose own cancellation comes first.
            let cancelled = CancelToken()
            cancelled.cancel()
            _ = try await Engine.open(
                .path(path: tinyModel.path), options: EngineOptions(), onProgress: nil, cancel: cancelled)
        },
        "chatTemplate": { _ in
            let engine = try await open(EngineOptions(chatTemplate: "{{ raise_exception('no such role') }}"))
            try await engine.session().setMessages([.user("my secret")])
        },
        "closed": { _ in
            let session = try await prompted()
            session.close()
            try await session.pushText("more")
        },
        "contextFull": { _ in
            // A session keeps its engine.
            try await open(EngineOptions(context: 4)).session().pushText("a long story")
        },
        "fingerprintVersion": { folder in
            try await restored(folder) { try tamper($0, "epiphyte.base.1:", "epiphyte.base.9:") }
        },
        "formatVersion": { folder in
            try await restored(folder) { try tamper($0, "epiphyte.session.", "epiphyte.session.9") }
        },
        "invalidAdapter": { folder in
            let copy = folder.appendingPathComponent("plain")
            try FileManager.default.copyItem(at: peft("plain"), to: copy)
            let tensors = copy.appendingPathComponent("adapter_model.safetensors")
            try tamper(tensors, "0.self_attn.k_proj", "0.self_attn.x_proj")
            try await tiny().loadAdapter("tampered", from: copy)
        },
        "invalidArgument": { _ in _ = try await open(EngineOptions(context: -1)) },
        "invalidDelta": { folder in
            let options = AcceptOptions(adapter: "replies", trusted: [])
            _ = try await tiny().applyVersion(tinyVersion, to: folder.appendingPathComponent("version"), options: options)
        },
        "invalidFile": { folder in
            let file = folder.appendingPathComponent("model.gguf")
            try Data("no model".utf8).write(to: file)
            _ = try await Engine.open(file)
        },
        "invalidMetadata": { folder in try await openTampered(folder, ["llama.block_count": "tnuoc_kcolb.amall"]) },
        "invalidTensor": { folder in
            // In its place one that is smaller than the model's sizes say.
            try await openTampered(
                folder,
                ["blk.0.attn_q.weight": "blk.0.attn_X.weight", "blk.0.attn_k.weight": "blk.0.attn_q.weight"])
        },
        "io": { _ in _ = try await Engine.open(URL(fileURLWithPath: "/nowhere/model.gguf")) },
        "missingTensor": { folder in
            try await openTampered(folder, ["blk.0.attn_q.weight": "blk.0.attn_X.weight"])
        },
        "noGpu": { _ in _ = try await open(EngineOptions(gpu: "no such device")) },
        "outOfMemory": { folder in
            // What 16 million tokens of a pass take, no buffer here holds.
            var options = TrainerTests().options(folder, steps: 1)
            options.microBatch = 1 << 18
            try await tiny().trainer(options).run()
        },
        "overBudget": { _ in
            _ = try await Engine.memoryPlan(tinyModel, options: MemoryPlanOptions(memoryBudgetBytes: 1000))
        },
        "superLink": { _ in
            let client = try await FlowerClient.open(signer: SigningKey(generating: .p256))
            _ = try await client.poll()
            try await client.answer(FlowerAnswer(status: 404, date: nil, body: Data()))
            _ = try await client.poll()
        },
        "training": { folder in
            var options = TrainerTests().options(folder, steps: 50)
            options.learningRate = 1e30
            options.maxGradNorm = 0
            try await tiny().trainer(options).run()
        },
        "unsupported": { folder in try await openTampered(folder, ["\u{5}\(zeros)llama": "\u{5}\(zeros)mambo"]) },
    ]

    static func open(_ options: EngineOptions = EngineOptions(context: 128)) async throws -> Engine {
        try await Engine.open(tinyModel, options: options)
    }

    static func openTampered(_ folder: URL, _ changes: KeyValuePairs<String, String>) async throws {
        let file = folder.appendingPathComponent("model.gguf")
        try FileManager.default.copyItem(at: tinyModel, to: file)
        for (old, new) in changes { try tamper(file, old, new) }
        _ = try await Engine.open(file)
    }

    /// Saves a session, changes its file, and reads it again.
    static func restored(_ folder: URL, _ change: (URL) throws -> Void) async throws {
        let file = folder.appendingPathComponent("session")
        try await prompted().save(to: file)
        try change(file)
        _ = try await tiny().restore(from: file)
    }

    /// Saves a session with an adapter, changes the adapters, and reads it again.
    static func restored(_ folder: URL, adapter: String, _ change: (Engine) async throws -> Void) async throws {
        let engine = try await open(), file = folder.appendingPathComponent("session")
        try await engine.loadAdapter(adapter, from: peft(adapter))
        let session = try engine.session()
        try await session.setAdapters([AdapterWeight(id: adapter)])
        try await session.pushText(prompt)
        try await session.save(to: file)
        session.close()
        try await change(engine)
        _ = try await engine.restore(from: file)
    }

    @Test(arguments: causes.keys.sorted())
    func eachIsMet(name: String) async throws {
        try await withFolder { folder in
            let error = try #require(await thrown { try await Self.causes[name]!(folder) })
            #expect(cause(error) == name)
            #expect(!error.message().isEmpty && !error.message().contains("\n") && !error.hint().isEmpty)
        }
    }

    /// Against the cases as uniffi declares them.
    @Test func noneIsLeftOut() throws {
        let generated = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../Sources/EpiphyteCore/EpiphyteCore.swift")
        let source = try String(contentsOf: generated.standardized, encoding: .utf8)
        let enums = source.components(separatedBy: "\nenum EpiphyteError: Swift.Error")
        try #require(enums.count == 2, "uniffi declares errors in another way")
        let body = enums[1].components(separatedBy: "\n}")[0]
        let cases = body.matches(of: /\n *case `?(\w+)`?\(/).map { String($0.1) }
        let known = Set(Self.causes.keys).union(Self.outOfReach.keys)
        #expect(Set(cases) == known && cases.count == Self.causes.count + Self.outOfReach.count)
        for (cause, why) in Self.outOfReach.sorted(by: <) { print("not met here: \(cause): \(why)") }
    }
}
