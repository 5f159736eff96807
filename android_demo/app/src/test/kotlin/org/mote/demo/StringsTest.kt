package org.mote.demo

import java.io.File
import javax.xml.parsers.DocumentBuilderFactory
import org.junit.Assert.assertEquals
import org.junit.Test
import org.w3c.dom.Element

/** Both languages say the same things. */
class StringsTest {
    private val resources = File(repository, "android_demo/app/src/main/res")
    private val placeholder = Regex("%\\d\\$[sd]")

    /** Of each text its placeholders; of an array those of each item. */
    private fun texts(folder: String): Map<String, List<Set<String>>> {
        val parser = DocumentBuilderFactory.newInstance().newDocumentBuilder()
        val root = parser.parse(File(resources, "$folder/strings.xml")).documentElement
        return (0 until root.childNodes.length).mapNotNull { root.childNodes.item(it) as? Element }
            .filter { it.getAttribute("translatable") != "false" }
            .associate { it.getAttribute("name") to values(it) }
    }

    private fun values(element: Element): List<Set<String>> {
        fun placeholders(text: String) = placeholder.findAll(text).map { it.value }.toSet()
        // Languages have different numbers of plural forms.
        if (element.tagName == "plurals") return listOf(placeholders(element.textContent))
        val items = element.getElementsByTagName("item")
        val texts = (0 until items.length).map { items.item(it).textContent }
        return texts.ifEmpty { listOf(element.textContent) }.map(::placeholders)
    }

    @Test
    fun chineseHasEveryTextWithItsPlaceholders() = assertEquals(texts("values"), texts("values-zh"))
}
