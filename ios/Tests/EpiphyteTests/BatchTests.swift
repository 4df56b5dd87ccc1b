import Epiphyte
import Testing

@Suite struct BatchTests {
    let prompts = ["the sea", "a whale", "my ship"]

    func sessions() async throws -> [Session] {
        var sessions = [Session]()
        for prompt in prompts { sessions.append(try await prompted(prompt)) }
        return sessions
    }

    @Test func threeAnswerAsEachAlone() async throws {
        var alone = [String]()
        for prompt in prompts { alone.append(try await prompted(prompt).generate(greedy(8)).text()) }
        let batch = try await tiny().batch(sessions().map { BatchSequence($0, greedy(8)) })
        var together = ["", "", ""]
        for try await token in batch { together[Int(token.index)] += token.token.text }
        #expect(together == alone)
        #expect((0..<3).allSatisfy { batch.stats($0)?.finishReason == .maxTokens })
        #expect(batch.stats(3) == nil)
    }

    @Test func oneIsCancelledAndTheOthersGoOn() async throws {
        let batch = try await tiny().batch(sessions().map { BatchSequence($0, greedy(8)) })
        _ = try await batch.next()
        try batch.cancel(1)
        var counts = [0, 0, 0]
        for try await token in batch { counts[Int(token.index)] += 1 }
        #expect(counts[1] == 0 || batch.stats(1)?.finishReason == .cancelled)
        #expect(batch.stats(0)?.generatedTokens == 8 && batch.stats(2)?.generatedTokens == 8)
        #expect(batch.stats(1)?.finishReason == .cancelled)
    }

    @Test func cancelEndsAll() async throws {
        let sessions = try await sessions()
        let batch = try await tiny().batch(sessions.map { BatchSequence($0, greedy(100)) })
        _ = try await batch.next()
        batch.cancel()
        #expect(try await batch.next() == nil)
        for session in sessions { try await session.pushText("more") }
    }

    @Test func sameSessionTwiceIsRefused() async throws {
        let session = try await prompted()
        let twice = [BatchSequence(session), BatchSequence(session)]
        #expect(await cause { _ = try await tiny().batch(twice) } == "busy")
        try await session.pushText("still usable")
    }
}
