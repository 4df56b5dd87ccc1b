import Epiphyte
import Foundation
import Testing

/// What a token costs through Swift beyond what it costs in Rust, by the program of this repository on the same device.
@Suite(.enabled(if: environment["EPIPHYTE_OVERHEAD"]?.isEmpty == false, "EPIPHYTE_OVERHEAD names the program to compare with"))
struct OverheadTests {
    /// Seconds a token of the best of some runs, the first token not counted.
    func swift(_ engine: Engine, _ tokens: Int32, runs: Int) async throws -> Double {
        var best = Double.infinity
        for _ in 0..<runs {
            let session = try engine.session()
            try await session.pushText(prompt)
            let generation = try session.generate(greedy(tokens))
            _ = try await generation.next()
            let clock = ContinuousClock(), begin = clock.now
            while try await generation.next() != nil {}
            best = min(best, (clock.now - begin) / .seconds(1) / Double(tokens - 1))
        }
        return best
    }

    func rust(_ model: URL, _ tokens: Int32, runs: Int) throws -> Double {
        var best = Double.infinity
        for _ in 0..<runs {
            let process = Process(), output = Pipe()
            process.executableURL = URL(fileURLWithPath: environment["EPIPHYTE_OVERHEAD"]!)
            process.arguments = ["generate", "-m", model.path, "--json", "--ignore-eos", "-n", "\(tokens)", "-p", prompt]
            process.standardOutput = output
            try process.run()
            let json = try JSONSerialization.jsonObject(with: output.fileHandleForReading.readDataToEndOfFile())
            process.waitUntilExit()
            let stats = try #require((json as? [String: Any])?["decode_tps"] as? Double)
            best = min(best, 1 / stats)
        }
        return best
    }

    @Test func borderAlone() async throws {
        let ours = try await swift(tiny(), 200, runs: 5), rust = try rust(tinyModel, 200, runs: 5)
        print("tiny model: \(ours * 1e6) us a token in Swift, \(rust * 1e6) in Rust")
        #expect(ours - rust < 50e-6)
    }

    @Test func defaultModel() async throws {
        let ours = try await swift(real(), 64, runs: 3), rust = try rust(EpiphyteTests.defaultModel, 64, runs: 3)
        print("default model: \(1 / ours) tokens/s in Swift, \(1 / rust) in Rust")
        #expect(ours < rust * 1.03)
    }
}
