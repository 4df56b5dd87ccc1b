import Epiphyte
import Foundation
import Testing

@Suite struct GenerationTests {
    @Test func streamEndsAtMaxTokens() async throws {
        let generation = try await prompted().generate(greedy(5))
        var count = 0
        for try await _ in generation { count += 1 }
        #expect(count == 5)
        #expect(generation.finishReason == .maxTokens)
        #expect(generation.stats.generatedTokens == 5)
        #expect(generation.stats.decodeTokensPerSecond != nil)
    }

    @Test func isAnAsyncThrowingStreamToo() async throws {
        let stream: AsyncThrowingStream<Token, Error> = try await prompted().generate(greedy(3)).tokens
        #expect(try await stream.reduce(0) { count, _ in count + 1 } == 3)
    }

    @Test func answerIsWhatItsFormatAsksFor() async throws {
        let digits = GenerateOptions(maxTokens: 40, responseFormat: .regex(pattern: "[0-9]{7}"))
        let generation = try await prompted().generate(digits)
        let text = try await generation.text()
        #expect(text.count == 7 && text.allSatisfy { "0123456789".contains($0) })
        #expect(generation.finishReason == .endOfGeneration)
    }

    @Test func sessionHoldsWhatWasHandedOut() async throws {
        let session = try await prompted()
        let before = session.tokenCount
        let generation = try session.generate(greedy(16))
        for _ in 0..<3 { _ = try await generation.next() }
        #expect(session.tokenCount == before + 3)
        generation.cancel()
        let ids = try await session.tokens()
        #expect(ids.count == before + 3)
    }

    @Test func noTokenComesAfterCancel() async throws {
        let generation = try await prompted().generate(greedy(32))
        _ = try await generation.next()
        generation.cancel()
        #expect(try await generation.next() == nil)
        #expect(generation.finishReason == .cancelled)
    }

    @Test func cancelBeforeTheFirstTokenIsNotLost() async throws {
        let generation = try await prompted().generate(greedy(32))
        generation.cancel()
        #expect(try await generation.next() == nil)
        #expect(generation.stats.generatedTokens == 0)
    }

    @Test func cancelAfterTheEndIsHarmless() async throws {
        let generation = try await prompted().generate(greedy(2))
        _ = try await generation.text()
        generation.cancel()
        #expect(generation.finishReason == .maxTokens)
    }

    @Test func cancelledTaskEndsTheStream() async throws {
        let session = try await prompted()
        let generation = try session.generate(greedy(200))
        let started = Box(0)
        let task = Task {
            for try await _ in generation { started.change { $0 += 1 } }
        }
        while started.value == 0 { await Task.yield() }
        task.cancel()
        try await task.value
        #expect(started.value < 200)
        #expect(generation.finishReason == .cancelled)
        try await session.pushText("more")
    }

    /// Not only one that waits for a token.
    @Test(arguments: [true, false])
    func taskCancelledBetweenTwoTokensEndsTheAnswer(stream: Bool) async throws {
        let session = try await prompted()
        let generation = try session.generate(greedy(200)), tokens = generation.tokens
        let task = Task {
            func cancelled() -> Bool { withUnsafeCurrentTask { $0?.cancel() }; return true }
            if stream {
                for try await _ in tokens where cancelled() {}
            } else {
                for try await _ in generation where cancelled() {}
            }
        }
        try await task.value
        #expect(generation.stats.generatedTokens == 1 && generation.finishReason == .cancelled)
        try await session.pushText("more")
    }

    @Test func taskCancelledBeforeItBeginsGetsNoToken() async throws {
        let generation = try await prompted().generate(greedy(32))
        let task = Task {
            while !Task.isCancelled { await Task.yield() }
            return try await generation.next()
        }
        task.cancel()
        #expect(try await task.value == nil)
    }

    @Test func breakFreesTheSession() async throws {
        let session = try await prompted()
        for try await _ in try session.generate(greedy(32)) { break }
        try await session.pushText("more")
    }

    @Test func sessionIsBusyWhileAnAnswerRuns() async throws {
        let session = try await prompted()
        let generation = try session.generate(greedy(32))
        _ = try await generation.next()
        #expect(await cause { try await session.pushText("more") } == "busy")
        #expect(await cause { _ = try session.generate() } == "busy")
        generation.cancel()
    }

    @Test func closingTheSessionEndsItsAnswer() async throws {
        let session = try await prompted()
        let generation = try session.generate(greedy(200))
        _ = try await generation.next()
        session.close()
        #expect(await cause { while try await generation.next() != nil {} } == "closed")
    }

    @Test func seedDecidesTheAnswer() async throws {
        let sampling = { (seed: Int64) in
            GenerateOptions(maxTokens: 12, sampling: Sampling(temperature: 1.5, seed: seed), ignoreEos: true)
        }
        let first = try await prompted().generate(sampling(1)).text()
        #expect(try await prompted().generate(sampling(1)).text() == first)
        #expect(try await prompted().generate(sampling(2)).text() != first)
    }

    @Test func stopTextEndsTheAnswerAndIsNoPartOfIt() async throws {
        let whole = try await prompted().generate(greedy(8)).text()
        let stop = String(whole.dropFirst(whole.count / 2).prefix(2))
        let generation = try await prompted().generate(GenerateOptions(maxTokens: 8, stop: [stop], ignoreEos: true))
        let text = try await generation.text()
        #expect(!text.contains(stop))
        #expect(generation.finishReason == .stop)
    }

    @Test func contextFullIsAnEndAndNotAnError() async throws {
        let engine = try await Engine.open(tinyModel, options: EngineOptions(context: 32))
        let session = try engine.session()
        try await session.pushText(prompt)
        let generation = try session.generate(greedy(100))
        _ = try await generation.text()
        #expect(generation.finishReason == .contextFull)
    }

    @Test(arguments: [
        GenerateOptions(maxTokens: -1),
        GenerateOptions(sampling: Sampling(temperature: -1)),
        GenerateOptions(sampling: Sampling(temperature: .nan)),
        GenerateOptions(sampling: Sampling(topK: -1)),
        GenerateOptions(sampling: Sampling(temperature: 1, topP: 2)),
        GenerateOptions(stopTokens: [-1]),
    ])
    func wrongOptionsAreRefused(options: GenerateOptions) async throws {
        let session = try await prompted()
        #expect(await cause { _ = try await session.generate(options).text() } == "invalidArgument")
        try await session.pushText("still usable")
    }
}
