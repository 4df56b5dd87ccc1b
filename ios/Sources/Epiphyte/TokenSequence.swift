/// Tokens of running answers, each computed as it is asked for. They end when the task is cancelled, when `cancel()` is
/// called, and when nobody holds this any more.
public protocol TokenSequence: AsyncSequence, Sendable
where AsyncIterator == AsyncThrowingStream<Element, Error>.Iterator {
    /// The next token; nil once all is over.
    func next() async throws -> Element?

    /// Ends what has not ended, also what has not begun: no token comes once this has returned.
    func cancel()
}

extension TokenSequence {
    /// The tokens that nobody took yet.
    public var tokens: AsyncThrowingStream<Element, Error> { AsyncThrowingStream { try await next() } }

    public func makeAsyncIterator() -> AsyncThrowingStream<Element, Error>.Iterator { tokens.makeAsyncIterator() }

    /// What `pull` gives; cancelling the task ends the answers.
    func cancellable<T: Sendable>(_ pull: @Sendable () async throws -> T) async throws -> T {
        try await withTaskCancellationHandler { try await pull() } onCancel: { cancel() }
    }
}
