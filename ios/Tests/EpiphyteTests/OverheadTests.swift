import Epiphyte
import Foundation
import Testing

/// What a token costs through Swift beyond what it costs in Rust, by the program of this repository on the same device.
@Suite(.enabled(if: environment["EPIPHYTE_OVERHEAD"]?.isEmpty == false, "EPIPHYTE_OVERHEAD names the program to compare with"))
struct OverheadTests {
    /// Seconds a token, of several turns.
    struct Turns: CustomStringConvertible {
        var all: [Double] = []
        var best: Double { all.min()! }
        var description: String {
            let microseconds = [best, all.sorted()[all.count / 2]].map { Int(($0 * 1e6).rounded()) }
            return "\(microseconds[0]) us a token at best, \(microseconds[1]) in the middle"
        }
    }

    /// Seconds a token, the first one not counted.
    func swift(_ engine: Engine, _ tokens: Int32) async throws -> Double {
        let session = try engine.session()
        try await session.pushText(prompt)
        let generation = try session.generate(greedy(tokens))
        _ = try await generation.next()
        let clock = ContinuousClock(), begin = clock.now
        while try await generation.next() != nil {}
        return (clock.now - begin) / .seconds(1) / Double(tokens - 1)
    }

    func rust(_ model: URL, _ tokens: Int32) throws -> Double {
        let process = Process(), output = Pipe()
        process.executableURL = URL(fileURLWithPath: environment["EPIPHYTE_OVERHEAD"]!)
        process.arguments = ["generate", "-m", model.path, "--json", "--ignore-eos", "-n", "\(tokens)", "-p", prompt]
        process.standardOutput = output
        try process.run()
        let json = try JSONSerialization.jsonObject(with: output.fileHandleForReading.readDataToEndOfFile())
        process.waitUntilExit()
        return 1 / (try #require((json as? [String: Any])?["decode_tps"] as? Double))
    }

    /// Turn by turn, so that both meet the same machine.
    func compare(_ engine: Engine, _ model: URL, tokens: Int32, turns: Int) async throws -> (swift: Turns, rust: Turns) {
        _ = try await swift(engine, tokens)
        var ours = Turns(), theirs = Turns()
        for _ in 0..<turns {
            ours.all.append(try await swift(engine, tokens))
            theirs.all.append(try rust(model, tokens))
        }
        print("\(model.lastPathComponent): \(ours) in Swift; \(theirs) in Rust")
        return (ours, theirs)
    }

    @Test func borderAlone() async throws {
        let (ours, theirs) = try await compare(tiny(), tinyModel, tokens: 100, turns: 24)
        #expect(ours.best - theirs.best <= 50e-6)
    }

    @Test func defaultModel() async throws {
        let (ours, theirs) = try await compare(real(), EpiphyteTests.defaultModel, tokens: 16, turns: 5)
        #expect(ours.best <= theirs.best * 1.03)
    }
}
