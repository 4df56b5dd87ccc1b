import Epiphyte
import Foundation
import Testing

@Suite struct SessionTests {
    @Test func answersAreTheSameEachTime() async throws {
        let first = try await prompted().generate(greedy(8)).text()
        let second = try await prompted().generate(greedy(8)).text()
        #expect(first == second)
        #expect(!first.isEmpty)
    }

    @Test func holdsWhatWasPushed() async throws {
        let session = try await prompted()
        let ids = try await session.tokens()
        #expect(session.tokenCount == ids.count)
        let other = try await tiny().session()
        try await other.pushTokens(ids)
        #expect(try await other.tokens() == ids)
    }

    @Test func engineCountsAsSessionDoes() async throws {
        let session = try await prompted()
        let counted = try await tiny().countTokens(prompt)
        #expect(counted == session.tokenCount)
    }

    @Test func truncateForgets() async throws {
        let session = try await prompted()
        let whole = try await session.generate(greedy(4)).text()
        try await session.truncate(session.tokenCount - 4)
        #expect(try await session.generate(greedy(4)).text() == whole)
        try await session.truncate(0)
        #expect(session.tokenCount == 0)
    }

    @Test func truncateBeyondTheEndDoesNothing() async throws {
        let session = try await prompted()
        let count = session.tokenCount
        try await session.truncate(1_000_000)
        #expect(session.tokenCount == count)
    }

    @Test func forkGoesOnAlone() async throws {
        let session = try await prompted()
        let fork = try await session.fork()
        let answer = try await session.generate(greedy(8)).text()
        #expect(fork.tokenCount == session.tokenCount - 8)
        #expect(try await fork.generate(greedy(8)).text() == answer)
    }

    @Test func savedSessionGoesOnWhereItWas() async throws {
        try await withFolder { folder in
            let file = folder.appendingPathComponent("session")
            let session = try await prompted()
            _ = try await session.generate(greedy(4)).text()
            try await session.save(to: file)
            let restored = try await tiny().restore(from: file)
            #expect(restored.tokenCount == session.tokenCount)
            let rest = try await session.generate(greedy(4)).text()
            #expect(try await restored.generate(greedy(4)).text() == rest)
        }
    }

    @Test func twoSessionsAnswerAtOnce() async throws {
        async let first = prompted("the sea").generate(greedy(16)).text()
        async let second = prompted("a whale").generate(greedy(16)).text()
        let together = try await [first, second]
        let alone = try await [
            prompted("the sea").generate(greedy(16)).text(), prompted("a whale").generate(greedy(16)).text(),
        ]
        #expect(together == alone)
    }

    @Test func closeTwiceIsHarmless() async throws {
        let session = try await prompted()
        session.close()
        session.close()
        #expect(await cause { try await session.pushText("more") } == "closed")
        #expect(await cause { _ = try session.generate() } == "closed")
    }

    @Test func chatIsRenderedByTheModelsTemplate() async throws {
        let text = try await real().renderChat([.system("Be brief."), .user("Hello")])
        #expect(text.contains("Be brief.") && text.contains("Hello") && text.hasSuffix("assistant\n"))
    }

    @Test func conversationIsNotComputedAgain() async throws {
        let session = try await real().session()
        var messages = [Message.user("Name a colour.")]
        try await session.setMessages(messages)
        let first = try session.generate(GenerateOptions(maxTokens: 12))
        messages.append(.assistant(try await first.text()))
        messages.append(.user("And another one."))
        try await session.setMessages(messages)
        let second = try session.generate(GenerateOptions(maxTokens: 2))
        _ = try await second.text()
        #expect(second.stats.cachedTokens >= first.stats.promptTokens)
    }

    @Test func emptyTextIsNoText() async throws {
        let session = try await tiny().session()
        try await session.pushText("")
        #expect(session.tokenCount == 0)
        #expect(await cause { _ = try await session.generate(greedy(1)).text() } == "invalidArgument")
    }
}
