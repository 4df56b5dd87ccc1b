package dev.epiphyte

import kotlin.test.Test
import kotlin.test.assertFailsWith
import kotlin.test.assertSame
import kotlin.test.assertTrue

class BorderTest {
    @Test
    fun `a panic that reaches the border is an error of the library`() {
        val panic = InternalException("index out of bounds: my secret")
        val error = assertFailsWith<EpiphyteException.Internal> { calling { throw panic } }
        assertSame(panic, error.cause)
        assertTrue(error.hint.isNotEmpty() && "secret" !in error.message)
    }
}
