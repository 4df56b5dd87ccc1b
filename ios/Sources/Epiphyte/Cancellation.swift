/// Waits for `call` until it is done or the task is cancelled. Then the call, which can't be stopped, runs on alone, and what
/// it makes is freed.
func untilCancelled<T: Sendable>(_ call: @escaping @Sendable () async throws -> T) async throws -> T {
    try Task.checkCancellation()
    let results = AsyncThrowingStream<T, Error> { continuation in
        Task {
            do {
                continuation.yield(try await call())
                continuation.finish()
            } catch {
                continuation.finish(throwing: error)
            }
        }
    }
    for try await result in results { return result }
    throw CancellationError()
}
