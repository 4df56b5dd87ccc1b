import Epiphyte
import Foundation
import Testing

@testable import Sample

@Suite struct DocsTests {
    /// docs/ios.md as a program, beside which an app's resources lie.
    @Test func whatThePageSaysRuns() throws {
        let program = built("Docs")
        let home = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: home) }
        // In place of the default model, which says more and takes longer.
        let key = home.appendingPathComponent("publisher.txt")
        try publisher.write(to: key, atomically: true, encoding: .utf8)
        let resources = [
            ("model.gguf", try longTinyModel(home)), ("pirate", peft("plain")), ("publisher.txt", key), ("replies.version", tinyVersion),
        ]
        for (name, file) in resources {
            let link = program.deletingLastPathComponent().appendingPathComponent(name)
            try? FileManager.default.removeItem(at: link)
            try FileManager.default.createSymbolicLink(at: link, withDestinationURL: file)
        }
        let process = Process(), output = Pipe()
        process.executableURL = program
        // What was compiled before is kept.
        let caches = environment["XDG_CACHE_HOME"] ?? environment["HOME"]! + "/.cache"
        process.environment = environment.merging(["HOME": home.path, "XDG_CACHE_HOME": caches]) { _, new in new }
        process.standardOutput = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        for line in ["tokens/s", "4 modules", "step 5 of 5", "finished", "nobody", "background", "cancelled", "to upload:"] {
            #expect(text.contains(line), "\(line) is not in what it prints")
        }
    }

    @Test @MainActor func sampleAsksTeachesAndAsksAgain() async throws {
        try await withFolder { folder in
            let (bundled, model) = (["plain": peft("plain")], try longTinyModel(folder))
            let adapters = folder.appendingPathComponent("adapters")
            let assistant = Assistant(model: model, bundled: bundled, folder: adapters)
            await assistant.open()
            #expect(assistant.isReady && assistant.features == ["plain"] && assistant.problem == nil)
            assistant.feature = "plain"
            async let asked: Void = assistant.ask("What is an epiphyte?")
            while assistant.tokensPerSecond == nil { try await Task.sleep(for: .milliseconds(20)) }
            assistant.stop()
            await asked
            #expect(!assistant.answer.isEmpty && assistant.problem == nil)

            async let taught: Void = assistant.teach("mine", [("What is our cat called?", "Pixel")])
            while assistant.losses.isEmpty { try await Task.sleep(for: .milliseconds(20)) }
            assistant.stop()
            await taught
            #expect(assistant.problem == nil && assistant.features == ["plain"])

            // Begun and stopped: its folder is a feature from the next start on.
            let again = Assistant(model: model, bundled: bundled, folder: adapters)
            await again.open()
            #expect(again.features == ["mine", "plain"])
        }
    }

    @Test @MainActor func sampleSaysWhatIsWrong() async throws {
        let nowhere = URL(fileURLWithPath: "/nowhere")
        let assistant = Assistant(model: nowhere, bundled: [:], folder: nowhere)
        await assistant.open()
        #expect(assistant.problem?.contains("/nowhere") == true && !assistant.isReady)
    }
}
