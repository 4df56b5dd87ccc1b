import EpiphyteCore
import Foundation

/// The thing and the remedy, and the remedy alone, where Swift looks for them.
extension EpiphyteError: LocalizedError {
    public var errorDescription: String? { message() }
    public var recoverySuggestion: String? { hint() }
}
