import Epiphyte
import Foundation
import Testing

@Suite struct MemoryTests {
    /// Bytes of this process in memory.
    func resident() throws -> Int {
        let pages = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8).split(separator: " ")[1]
        return Int(pages)! * 4096
    }

    /// How much more memory the process has after `rounds` of `body`, the first tenth of them not counted.
    func growth(_ rounds: Int, _ body: () async throws -> Void) async throws -> Int {
        for _ in 0..<(rounds / 10) { try await body() }
        let before = try resident()
        for _ in (rounds / 10)..<rounds { try await body() }
        return try resident() - before
    }

    @Test func aThousandSessionsLeaveNothing() async throws {
        let engine = try await tiny()
        func round() async throws {
            let session = try engine.session()
            try await session.pushText(prompt)
            _ = try await session.generate(greedy(1)).text()
            session.close()
        }
        try await round()
        let bytes = try engine.deviceBytes
        let growth = try await growth(1000) { try await round() }
        #expect(try engine.deviceBytes <= bytes)
        #expect(growth < 16 << 20, "\(growth) bytes more")
    }

    @Test func fiftyEnginesLeaveNothing() async throws {
        let growth = try await growth(50) {
            let engine = try await Engine.open(tinyModel, options: EngineOptions(context: 64))
            let session = try engine.session()
            try await session.pushText(prompt)
            _ = try await session.generate(greedy(1)).text()
            engine.close()
            await engine.closed()
        }
        #expect(growth < 64 << 20, "\(growth) bytes more")
    }

    @Test func whatNobodyHoldsIsFreed() async throws {
        weak var engine: Engine?
        weak var session: Session?
        weak var generation: Generation?
        func use() async throws {
            let opened = try await Engine.open(tinyModel, options: EngineOptions(context: 64))
            let held = try opened.session()
            try await held.pushText(prompt)
            let answer = try held.generate(greedy(8))
            _ = try await answer.next()
            (engine, session, generation) = (opened, held, answer)
        }
        try await use()
        #expect(engine == nil && session == nil && generation == nil)
    }
}
