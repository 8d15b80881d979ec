"""Topics: clusters of the prompts of a reference, and which of them other prompts fall into. Needs scikit-learn."""

from collections.abc import Sequence

# A cluster of fewer prompts than this says nothing.
ROWS_A_TOPIC = 25
WORDS = r"(?u)\b[^\W\d_][\w'’-]+\b"


def assign_topics(
    reference: Sequence[str], current: Sequence[str], topics: int, seed: int = 0
) -> tuple[list[str], list[str]] | None:
    """The topic of each prompt, named by its number and most telling words ("3 refund, order, days").

    TF-IDF, truncated SVD (Deerwester et al. 1990) and k-means are fitted on the reference alone; both lists are then
    assigned to the nearest centre in the same way. None when the reference has too few prompts or words for two topics.
    """
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    clusters = min(topics, len(reference) // ROWS_A_TOPIC)
    if clusters < 2:
        return None
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5, token_pattern=WORDS)
    try:
        weights = vectorizer.fit_transform(reference)
    except ValueError:  # scikit-learn's word for "no word is left"
        return None
    components = min(50, weights.shape[1] - 1, weights.shape[0] - 1)
    if components < 2:
        return None
    space = make_pipeline(TruncatedSVD(components, random_state=seed), Normalizer())
    means = KMeans(clusters, n_init=4, random_state=seed)
    before = means.fit_predict(space.fit_transform(weights))
    after = means.predict(space.transform(vectorizer.transform(current)))
    words = vectorizer.get_feature_names_out()
    overall = np.asarray(weights.mean(axis=0)).ravel()
    names = []
    for topic in range(clusters):
        # The words that set the topic apart, not those that all prompts share.
        distinctive = np.asarray(weights[before == topic].mean(axis=0)).ravel() - overall
        names.append(f"{topic + 1} {', '.join(words[distinctive.argsort()[::-1][:3]])}")
    return [names[topic] for topic in before], [names[topic] for topic in after]
