import EpiphyteCore

/// A running answer: `for try await token in generation`.
public final class Generation: TokenSequence {
    public typealias Element = Token

    let core: EpiphyteCore.Generation

    init(_ core: EpiphyteCore.Generation) { self.core = core }

    public func next() async throws -> Token? { try await cancellable { try await core.next() } }

    /// All that is left of it, as text.
    public func text() async throws -> String {
        try await reduce(into: "") { text, token in text += token.text }
    }

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
