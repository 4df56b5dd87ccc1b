import Epiphyte
import Foundation
import Malloc
import Testing

@Suite struct MemoryTests {
    /// Bytes that are allocated and not freed, the driver's included. What is resident says less: an allocator keeps some.
    func held() -> Int {
        let info = mallinfo2()
        return Int(info.uordblks + info.hblkhd)
    }

    /// How much more memory is held after `rounds` of `body`, a fifth as many before them not counted.
    func growth(_ rounds: Int, _ body: () async throws -> Void) async throws -> Int {
        for _ in 0..<(rounds / 5) { try await body() }
        let before = held()
        for _ in 0..<rounds { try await body() }
        let growth = held() - before
        print("\(rounds) rounds: \(growth) bytes more")
        return growth
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
        #expect(try engine.deviceBytes == bytes)
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
        #expect(growth < 16 << 20, "\(growth) bytes more")
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
