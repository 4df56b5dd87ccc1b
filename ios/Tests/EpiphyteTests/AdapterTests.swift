import Epiphyte
import Foundation
import Testing

/// Adapters that PEFT wrote for the tiny model.
func peft(_ name: String) -> URL { repository("tests/golden/peft_logits/\(name)") }

@Suite struct AdapterTests {
    /// An engine of its own with two adapters.
    func engine() async throws -> Engine {
        let engine = try await Engine.open(tinyModel, options: EngineOptions(context: 256))
        try await engine.loadAdapter("plain", from: peft("plain"))
        try await engine.loadAdapter("attention", from: peft("attention"))
        return engine
    }

    func answer(_ engine: Engine, _ adapters: [AdapterWeight]) async throws -> String {
        let session = try engine.session()
        try await session.setAdapters(adapters)
        try await session.pushText(prompt)
        return try await session.generate(greedy(12)).text()
    }

    @Test func reportSaysWhatWasLoaded() async throws {
        let engine = try await Engine.open(tinyModel)
        let report = try await engine.loadAdapter("plain", from: peft("plain"))
        #expect(report.format == .peft)
        #expect(!report.modules.isEmpty && report.modules.allSatisfy { $0.rank == 4 })
        #expect(try await engine.adapters().map(\.id) == ["plain"])
        #expect(try await engine.adapterReport("plain") == report)
    }

    @Test func adapterFromMemoryIsTheSame() async throws {
        let engine = try await engine()
        let config = try String(contentsOf: peft("plain").appendingPathComponent("adapter_config.json"), encoding: .utf8)
        let tensors = try Data(contentsOf: peft("plain").appendingPathComponent("adapter_model.safetensors"))
        try await engine.loadAdapter("bytes", from: .bytes(configJson: config, safetensors: tensors))
        let fromFile = try await answer(engine, ["plain"])
        #expect(try await answer(engine, ["bytes"]) == fromFile)
    }

    @Test func eachAdapterAnswersItsOwnWay() async throws {
        let engine = try await engine()
        let base = try await answer(engine, [])
        let plain = try await answer(engine, ["plain"])
        #expect(plain != base)
        #expect(try await answer(engine, [AdapterWeight(id: "plain", weight: 0)]) == base)
        #expect(try await answer(engine, ["attention"]) != plain)
    }

    @Test func setsHaveWeights() async throws {
        let engine = try await engine()
        let session = try engine.session()
        let set = [AdapterWeight(id: "plain", weight: 0.5), AdapterWeight(id: "attention", weight: 2)]
        try await session.setAdapters(set)
        #expect(try await session.adapters() == set)
        try await session.setAdapters([])
        #expect(try await session.adapters().isEmpty)
    }

    @Test func recomputeIsAsIfItHadBeenThereFromTheStart() async throws {
        let engine = try await engine()
        let session = try engine.session()
        try await session.pushText(prompt)
        _ = try await session.generate(greedy(1)).text()
        try await session.truncate(session.tokenCount - 1)
        try await session.setAdapters(["plain"])
        let expected = try await answer(engine, ["plain"])
        #expect(try await session.generate(greedy(12)).text() == expected)
    }

    @Test(arguments: [KvPolicy.recompute, .keep])
    func swapsInTheMiddleOfAnAnswer(history: KvPolicy) async throws {
        let engine = try await engine()
        let session = try engine.session()
        try await session.pushText(prompt)
        let generation = try session.generate(greedy(24))
        var ids = [Int32]()
        for _ in 0..<6 { ids.append(try await generation.next()!.id) }
        try await generation.setAdapters(["plain"], history: history)
        while let token = try await generation.next() { ids.append(token.id) }
        #expect(ids.count == 24)
        let base = try engine.session()
        try await base.pushText(prompt)
        _ = try await base.generate(greedy(24)).text()
        let alone = try await base.tokens().suffix(24)
        #expect(ids != Array(alone))
    }

    @Test func unknownIdIsRefused() async throws {
        let engine = try await engine()
        let session = try engine.session()
        let error = await thrown { try await session.setAdapters(["nobody"]) }
        #expect(error?.message().contains("nobody") == true)
        #expect(try await engine.adapterReport("nobody") == nil)
    }

    @Test func adapterInUseStays() async throws {
        let engine = try await engine()
        let session = try engine.session()
        try await session.setAdapters(["plain"])
        #expect(await cause { try await engine.unloadAdapter("plain") } == "adapterInUse")
        session.close()
        try await engine.unloadAdapter("plain")
        try await engine.unloadAdapter("plain")
        #expect(try await engine.adapters().map(\.id) == ["attention"])
    }

    @Test func adapterOfAnotherBaseIsRefused() async throws {
        let engine = try await Engine.open(tinyModel)
        #expect(await thrown { try await engine.loadAdapter("pirate", from: repository("demo/adapters/pirate")) } != nil)
        #expect(try await engine.adapters().isEmpty)
    }

    @Test func missingAndDamagedFilesAreRefused() async throws {
        let engine = try await Engine.open(tinyModel)
        #expect(await cause { try await engine.loadAdapter("a", from: URL(fileURLWithPath: "/nowhere")) } == "io")
        #expect(await thrown { try await engine.loadAdapter("a", from: .gguf(bytes: Data())) } != nil)
        #expect(
            await thrown {
                try await engine.loadAdapter("a", from: .bytes(configJson: "{", safetensors: Data([1, 2])))
            } != nil)
    }

    @Test func fileMayGoWhileTheAdapterIsUsed() async throws {
        try await withFolder { folder in
            let copy = folder.appendingPathComponent("plain")
            try FileManager.default.copyItem(at: peft("plain"), to: copy)
            let engine = try await Engine.open(tinyModel)
            try await engine.loadAdapter("plain", from: copy)
            let before = try await answer(engine, ["plain"])
            try FileManager.default.removeItem(at: copy)
            #expect(try await answer(engine, ["plain"]) == before)
        }
    }

    @Test func featuresOfTheDefaultModelSwap() async throws {
        let engine = try await real()
        try await engine.loadAdapter("pirate", from: repository("demo/adapters/pirate"))
        try await engine.loadAdapter("json", from: repository("demo/adapters/json"))
        let session = try engine.session()
        var answers = [String]()
        for adapter: AdapterWeight in ["pirate", "json"] {
            try await session.setAdapters([adapter])
            try await session.setMessages([.user("What is an epiphyte?")])
            answers.append(try await session.generate(GenerateOptions(maxTokens: 12)).text())
        }
        #expect(answers[0] != answers[1])
    }
}
