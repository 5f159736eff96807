package org.mote.engine

/**
 * Something the user or the developer can mend. The message is one sentence: what was found, what was expected and
 * what to do. Everything else that is thrown is a bug.
 */
class MoteException(message: String, cause: Throwable? = null) : Exception(asSentence(message), cause)

/** Many messages end in the words of a library, which may have brought a period of its own. */
private fun asSentence(message: String): String = if (message.last() in ".!?。") message else "$message."
