/// Tokens of running answers, each computed as it is asked for. They end when the task that asks is cancelled, when
/// `cancel()` is called, and when nobody holds this any more.
public protocol TokenSequence: AsyncSequence, Sendable where AsyncIterator == TokenIterator<Element> {
    /// The next token; nil once all is over.
    func next() async throws -> Element?

    /// Ends what has not ended, also what has not begun: no token comes once this has returned.
    func cancel()
}

/// Asks a `TokenSequence` for one token after another. (A stream over `next` would not call it in a task that is cancelled
/// already, and the answer would not hear of that.)
public struct TokenIterator<Element>: AsyncIteratorProtocol, Sendable {
    let ask: @Sendable () async throws -> Element?

    public func next() async throws -> Element? { try await ask() }
}

extension TokenSequence {
    public func makeAsyncIterator() -> TokenIterator<Element> { TokenIterator(ask: next) }

    /// The tokens that nobody took yet, as a stream; letting go of it ends the answers.
    public var tokens: AsyncThrowingStream<Element, Error> {
        let stream = Held(answers: self)
        return AsyncThrowingStream { try await stream.answers.next() }
    }

    /// What `pull` gives; cancelling the task ends the answers.
    func cancellable<T: Sendable>(_ pull: @Sendable () async throws -> T) async throws -> T {
        try await withTaskCancellationHandler { try await pull() } onCancel: { cancel() }
    }
}

/// What a stream holds for as long as it gives tokens.
private final class Held<Answers: TokenSequence>: Sendable {
    let answers: Answers

    init(answers: Answers) { self.answers = answers }

    deinit { answers.cancel() }
}
