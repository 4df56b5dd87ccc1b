import EpiphyteCore

/// A running answer, computed a token at a time as it is asked for: `for try await token in generation`. It ends when the
/// task is cancelled, when `cancel()` is called, and when nobody holds it any more.
public final class Generation: AsyncSequence, Sendable {
    public typealias Element = Token

    let core: EpiphyteCore.Generation

    init(_ core: EpiphyteCore.Generation) { self.core = core }

    /// The tokens that nobody took yet.
    public var tokens: AsyncThrowingStream<Token, Error> {
        AsyncThrowingStream { try await self.next() }
    }

    public func makeAsyncIterator() -> AsyncThrowingStream<Token, Error>.Iterator { tokens.makeAsyncIterator() }

    /// The next token; nil once the answer is over.
    public func next() async throws -> Token? {
        try await withTaskCancellationHandler {
            try await core.next()
        } onCancel: {
            core.cancel()
        }
    }

    /// All that is left of it, as text.
    public func text() async throws -> String {
        try await reduce(into: "") { text, token in text += token.text }
    }

    /// Ends the answer, also one that has not begun: no token comes once this has returned.
    public func cancel() { core.cancel() }

    /// Changes the adapters between two tokens. With `.keep` the tokens under way (at most 3) still come from the old ones.
    public func setAdapters(_ adapters: [AdapterWeight], history: KvPolicy = .recompute) async throws {
        try await core.setAdapters(adapters: adapters, history: history)
    }

    /// What it took so far.
    public var stats: AnswerStats { core.stats() }

    /// Why it ended; nil while it goes on.
    public var finishReason: FinishReason? { core.finishReason() }
}
