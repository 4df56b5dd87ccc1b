import Foundation
import Testing

@testable import Epiphyte

@Suite struct EngineTests {
    @Test func opensWithProgress() async throws {
        let seen = Box([LoadProgress]())
        let engine = try await Engine.open(tinyModel) { progress in seen.change { $0.append(progress) } }
        #expect(seen.value.contains { $0.phase == .weights && $0.done == $0.total })
        #expect(try engine.context > 0)
        #expect(try !engine.device.isEmpty && !engine.fingerprint.isEmpty)
        #expect(try engine.deviceBytes > 0)
        #expect(try engine.trains)
    }

    @Test func contextIsWhatWasAskedFor() async throws {
        #expect(try await Engine.open(tinyModel, options: EngineOptions(context: 48)).context == 48)
    }

    @Test func closeTwiceIsHarmless() async throws {
        let engine = try await Engine.open(tinyModel)
        let session = try engine.session()
        engine.close()
        engine.close()
        await engine.closed()
        #expect(await cause { _ = try engine.session() } == "closed")
        #expect(await cause { _ = try await engine.countTokens("a") } == "closed")
        #expect(await cause { _ = try engine.context } == "closed")
        #expect(await cause { try await session.pushText("a") } == "closed")
    }

    @Test func closeUnderLoadEndsWhatRuns() async throws {
        let engine = try await Engine.open(tinyModel, options: EngineOptions(context: 256))
        let answers = try await withThrowingTaskGroup(of: String.self) { group in
            for _ in 0..<4 {
                let session = try engine.session()
                try await session.pushText(prompt)
                group.addTask { await cause { while true { _ = try await session.generate(greedy(8)).text() } } }
            }
            try await Task.sleep(for: .milliseconds(100))
            engine.close()
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(answers == ["closed", "closed", "closed", "closed"])
        await engine.closed()
    }

    @Test func cancelledTaskDoesNotWaitForOpen() async throws {
        let task = Task { try await Engine.open(defaultModel) }
        task.cancel()
        await #expect(throws: CancellationError.self) { _ = try await task.value }
    }

    @Test func cancelledOpenLoadsNoFurther() async throws {
        let seen = Box([LoadProgress]())
        let task = Task {
            try await Engine.open(tinyModel, options: EngineOptions(cacheDir: "")) { progress in
                seen.change { $0.append(progress) }
            }
        }
        while seen.value.isEmpty { try await Task.sleep(for: .milliseconds(1)) }
        task.cancel()
        await #expect(throws: CancellationError.self) { _ = try await task.value }
        let last = try #require(seen.value.last)
        #expect(last.phase == .selfTest && last.done < last.total)
    }

    @Test func listenerThatThrowsIsAnErrorOfTheCall() async throws {
        struct Mine: Error {}
        #expect(await cause { _ = try await Engine.open(tinyModel) { _ in throw Mine() } } == "callback")
    }

    @Test(arguments: ["", "/nowhere/model.gguf", "/tmp", "/dev/null"])
    func whatIsNoModelIsRefused(path: String) async throws {
        let error = await thrown { _ = try await Engine.open(URL(fileURLWithPath: path)) }
        #expect(["io", "invalidFile"].contains(cause(error)))
    }

    @Test func pathsMayHoldAnything() async throws {
        try await withFolder { folder in
            let file = folder.appendingPathComponent("größe 🐋 \u{202e}.gguf")
            try FileManager.default.copyItem(at: tinyModel, to: file)
            #expect(try await Engine.open(file).context > 0)
        }
    }

    @Test(arguments: [
        EngineOptions(context: -1), EngineOptions(adapterBudgetBytes: -1), EngineOptions(gpu: "no such device"),
    ])
    func wrongOptionsAreRefused(options: EngineOptions) async throws {
        #expect(await ["invalidArgument", "noGpu"].contains(cause { _ = try await Engine.open(tinyModel, options: options) }))
    }

    @Test func cacheIsTheAppsUnlessAnotherIsNamed() {
        let caches = URL(fileURLWithPath: "/app/Library/Caches")
        #expect(EngineOptions().cached(in: caches).cacheDir == "/app/Library/Caches/epiphyte")
        #expect(EngineOptions(cacheDir: "/mine").cached(in: caches).cacheDir == "/mine")
        #expect(EngineOptions(cacheDir: "").cached(in: caches).cacheDir == "", "none is wanted")
        #expect(EngineOptions().cached(in: nil).cacheDir == nil)
    }

    @Test func cacheIsKeptWhereItIsAskedFor() async throws {
        try await withFolder { folder in
            let options = EngineOptions(cacheDir: folder.path)
            let phases = Box([Set<LoadPhase>]())
            for start in 0..<2 {
                phases.change { $0.append([]) }
                let engine = try await Engine.open(tinyModel, options: options) { progress in
                    if progress.total > 0 { phases.change { _ = $0[start].insert(progress.phase) } }
                }
                engine.close()
                await engine.closed()
            }
            #expect(phases.value[0].contains(.selfTest))
            #expect(!phases.value[1].contains(.selfTest))
            #expect(try !FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty)
        }
    }

    @Test func secondStartTestsAndCompilesNothing() async throws {
        try await withFolder { folder in
            var work = [DeviceWork]()
            for _ in 0..<2 {
                let engine = try await Engine.open(tinyModel, options: EngineOptions(context: 64, cacheDir: folder.path))
                let session = try engine.session()
                try await session.pushText(prompt)
                _ = try await session.generate(greedy(4)).text()
                work.append(try engine.counters)
                engine.close()
                await engine.closed()
            }
            #expect(work[0].testedKernels > 0 && work[0].compiledKernels > 0)
            #expect(work[1].testedKernels == 0 && work[1].compiledKernels == 0)
        }
    }

    @Test func memoryIsAddedUpBeforeItIsTaken() async throws {
        let plan = try await Engine.memoryPlan(tinyModel, options: MemoryPlanOptions(context: 256))
        #expect(plan.totalBytes > 0 && plan.classes.map(\.bytes).reduce(0, +) == plan.totalBytes)
        let small = MemoryPlanOptions(context: 256, memoryBudgetBytes: 1000)
        #expect(await cause { _ = try await Engine.memoryPlan(tinyModel, options: small) } == "overBudget")
    }

    @Test func errorsReadAsSwiftsDo() async throws {
        let error = await thrown { _ = try await Engine.open(URL(fileURLWithPath: "/nowhere/model.gguf")) }
        let found = try #require(error)
        #expect(found.errorDescription == found.message() && found.recoverySuggestion == found.hint())
        #expect(found.localizedDescription.contains("/nowhere/model.gguf"))
        #expect(!found.message().contains("\n"))
        guard case .io(_, _, let path) = found else { Issue.record("another case: \(found)"); return }
        #expect(path == "/nowhere/model.gguf")
    }
}
