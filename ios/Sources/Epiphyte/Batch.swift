import EpiphyteCore

/// One sequence of a batch: a session, and how to go on from what it holds.
public struct BatchSequence: Sendable {
    public let session: Session
    public let options: GenerateOptions

    public init(_ session: Session, _ options: GenerateOptions = GenerateOptions()) {
        self.session = session
        self.options = options
    }
}

/// Running answers of several sessions, computed together: `for try await token in batch` gives each with its index.
public final class BatchGeneration: TokenSequence {
    public typealias Element = BatchToken

    let core: EpiphyteCore.BatchGeneration

    init(_ core: EpiphyteCore.BatchGeneration) { self.core = core }

    public func next() async throws -> BatchToken? { try await cancellable { try await core.next() } }

    public func cancel() { core.cancel() }

    /// Ends the answer of one sequence; the others go on.
    public func cancel(_ index: Int) throws { try core.cancelSequence(index: Int32(clamping: index)) }

    /// Changes the adapters of one sequence between two tokens.
    public func setAdapters(
        _ index: Int, _ adapters: [AdapterWeight], history: KvPolicy = .recompute
    ) async throws {
        try await core.setAdapters(index: Int32(clamping: index), adapters: adapters, history: history)
    }

    /// What the answer of a sequence took so far, and why it ended; nil for one that is not there.
    public func stats(_ index: Int) -> AnswerStats? { core.stats(index: Int32(clamping: index)) }
}
