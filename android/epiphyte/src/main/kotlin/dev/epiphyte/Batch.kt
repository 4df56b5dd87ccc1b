package dev.epiphyte

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow

/** One sequence of [Engine.batch]. */
public class BatchSequence(
    /** It goes on from what it holds. */
    public val session: Session,
    /** How to choose its tokens and when to stop. */
    public val options: GenerateOptions = GenerateOptions(),
)

internal fun batchOf(engine: CoreEngine, sequences: List<BatchSequence>): Flow<BatchToken> = flow {
    val running = sequences.map { CoreBatchSequence(it.session.core, it.options) }
    val answers = calling { engine.batch(running) }
    try {
        val take = Shortcut.Take { buffer, room, wake, task ->
            Shortcut.epiphyte_batch_generation_take(answers.handle, buffer, room, wake, task)
        }
        Shortcut.pull(take, next = { calling { answers.next() } }) { emit(it) }
    } finally {
        answers.cancel()
        answers.close()
    }
}
