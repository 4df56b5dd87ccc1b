import EpiphyteCore

/// What an engine is, and then each change of it: `for await state in engine.states`. It keeps no engine open.
public struct EngineStates: AsyncSequence, Sendable {
    public typealias Element = EngineState

    let core: EpiphyteCore.States

    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        let core: EpiphyteCore.States

        public func next() async -> EngineState? {
            await withTaskCancellationHandler {
                await core.next()
            } onCancel: {
                core.cancel()
            }
        }
    }

    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(core: core) }
}
