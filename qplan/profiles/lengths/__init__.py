"""Length distributions of the named workloads: ``python -m qplan.profiles.lengths`` makes them again.

==============  ============================================================================================
chat            ShareGPT: first prompt and first completion of a conversation, by the rules of vLLM's serving
                benchmark (at least 4 tokens each, prompts up to 1,024, at most 2,048 together), so that
                figures compare with what others publish. Later turns, whose prompt carries the history, are
                not in it.
code            HumanEval: prompt and canonical solution of each problem.
summarization   CNN articles as in NewsQA and their highlights, approximated from published statistics: the
                data set itself is on no package index.
==============  ============================================================================================

Tokens are Llama-3's, without chat template. The corpora are read in a throwaway environment and go with it;
only bucketed counts are kept (:mod:`qplan.profiles.lengths.buckets`).
"""
